"""Fitting a student's layers brings it nearer to its teacher on what it has not seen, and never away where nothing was lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.errors import InputError
from edgeclip.models.inherit import StudentPlan, TowerPlan, inherit
from edgeclip.models.mend import fit_linear, fit_norm
from edgeclip.models.source import Source
from edgeclip.models.students import needs_samples, student
from tests.export.sources import clip_source
from tests.mixtures import moe_source
from tests.models.test_inherit import CANONICAL, embeddings, samples

THIRD = StudentPlan(TowerPlan(2, 40, 2, 64), TowerPlan(2, 24, 1, 48))


def likeness(one: Source, other: Source) -> list[float]:
    """Mean cosine of both towers' embeddings of unseen samples, without what all have in common."""
    given = samples(24, seed=11)
    pairs = zip(embeddings(one, given), embeddings(other, given), strict=True)
    return [float(F.cosine_similarity(a - a.mean(dim=0), b - b.mean(dim=0)).mean()) for a, b in pairs]


@pytest.mark.parametrize("shape", CANONICAL)
def test_unseen_samples_are_nearer_to_the_teacher(shape: str) -> None:
    teacher = clip_source(shape, layers=4)
    cut, mended = (inherit(teacher, replace(THIRD, mend=mend), samples(32)) for mend in (False, True))
    for before, after in zip(likeness(cut, teacher), likeness(mended, teacher), strict=True):
        assert after > before + 0.02
    assert cut.digest != mended.digest


def test_a_smaller_embedding_is_mended_towards_the_teachers_cosines() -> None:
    teacher, given = clip_source(layers=4), samples(24, seed=11)

    def cosines(source: Source) -> Tensor:
        image, text = (F.normalize(row, dim=-1) for row in embeddings(source, given))
        return (image @ text.T).flatten()

    cut, mended = (
        inherit(teacher, replace(THIRD, embed_dim=16, mend=mend), samples(32)) for mend in (False, True)
    )
    errors = [(cosines(source) - cosines(teacher)).abs().mean() for source in (cut, mended)]
    assert errors[1] < errors[0]


def test_experts_stay_and_what_is_around_them_is_mended() -> None:
    teacher = moe_source((4, 4))
    plain, made = (
        inherit(teacher, StudentPlan(TowerPlan(width=40), mend=mend), samples(32)) for mend in (False, True)
    )
    mine, its = made.model.state_dict(), plain.model.state_dict()
    changed = {name for name in its if not torch.equal(mine[name], its[name])}
    assert {"image.norm_post.weight", "image.blocks.1.attention.qkv.weight"} <= changed
    assert not any(".mlp." in name or name.startswith("text.") for name in changed)


def test_nothing_lost_is_nothing_changed() -> None:
    teacher = clip_source()
    made = inherit(teacher, StudentPlan(TowerPlan(2, 48, 3, 96), mend=True), samples(16))
    for mine, its in zip(embeddings(made), embeddings(teacher), strict=True):
        assert torch.equal(mine, its)
    whole = inherit(teacher, StudentPlan(text=TowerPlan(1), mend=True), samples(16))
    assert torch.equal(embeddings(whole)[0], embeddings(teacher)[0])  # its image tower was not cut


def test_it_is_asked_for_by_name() -> None:
    teacher, given = clip_source(layers=4), samples(32)
    name = "inherit:image.layers=2,text.layers=2"
    plain, mended = (student(teacher, f"{name}{more}", samples=given) for more in ("", ",mend=true"))
    assert sum(likeness(mended, teacher)) > sum(likeness(plain, teacher)) + 0.1
    assert [needs_samples(text) for text in (name, f"{name},mend=true", f"{name},mend=false")] == [
        False,
        True,
        False,
    ]


def test_other_samples_are_another_student() -> None:
    teacher = clip_source()
    plan = replace(THIRD, mend=True)
    digests = [inherit(teacher, plan, samples(8, seed)).digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("count", [0, 7])
def test_too_few_samples_are_refused(count: int) -> None:
    given = samples(count) if count else None
    with pytest.raises(InputError, match=f"mend: expected 8 pairs or more to fit to, got {count}"):
        inherit(clip_source(), replace(THIRD, mend=True), given)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def test_a_layer_finds_what_it_should_say() -> None:
    """Outputs of other weights on correlated inputs are learned from rows that do not judge; noise changes nothing."""
    mixed = noise(12, 12, seed=1)
    x = noise(400, 12) @ mixed
    held = torch.arange(400) % 4 == 3
    wanted = nn.Linear(12, 5).double()
    layer = nn.Linear(12, 5)
    fit_linear(layer, x, wanted(x), held)
    fresh = noise(50, 12, seed=3) @ mixed
    error = (layer.double()(fresh) - wanted(fresh)).square().mean()
    assert error < 0.001 * wanted(fresh).square().mean()
    layer = nn.Linear(12, 5)
    kept = layer.weight.clone()
    aims = layer(x.float()).double() + 10 * noise(400, 5, seed=4) * held[:, None].logical_not()
    fit_linear(layer, x, aims, held)
    assert torch.equal(layer.weight, kept)  # what it could learn is wrong for those that judge


@torch.no_grad()
def test_a_norm_finds_its_gain_and_bias() -> None:
    wanted = nn.LayerNorm(6).double()
    wanted.weight.copy_(noise(6))
    wanted.bias.copy_(noise(6, seed=1))
    norm = nn.LayerNorm(6)
    x, held = noise(200, 6, seed=2), torch.arange(200) % 4 == 3
    fit_norm(norm, x, wanted(x), held)
    torch.testing.assert_close(norm.weight.double(), wanted.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(norm.bias.double(), wanted.bias, rtol=0, atol=1e-5)
