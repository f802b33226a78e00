"""A masked tower is the student that would be cut, and training its masks finds parts that scores and even spreads do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeclip.errors import InputError
from edgeclip.models import learned_choice
from edgeclip.models.inherit import StudentPlan, TowerPlan, inherit
from edgeclip.models.learned_choice import CHANNELS, LAYERS, best, learn_choice, masked
from edgeclip.models.source import Source
from edgeclip.models.students import needs_samples, student
from tests.export.sources import clip_source
from tests.mixtures import moe_source
from tests.models.test_inherit import CANONICAL, embeddings, samples

CUT = StudentPlan(TowerPlan((0, 2), 40, 2, 60), TowerPlan((1, 2), 24, 1, 50), importance="uniform")


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_choice, "STEPS", 50)


def away(made: Source, teacher: Source) -> list[float]:
    """1 less the mean cosine of both towers' embeddings of unseen samples."""
    given = samples(24, seed=11)
    pairs = zip(embeddings(made, given), embeddings(teacher, given), strict=True)
    return [1 - float(F.cosine_similarity(*pair).mean()) for pair in pairs]


@pytest.mark.parametrize("shape", CANONICAL)
def test_a_masked_tower_says_what_the_cut_one_does(shape: str) -> None:
    teacher = clip_source(shape, layers=3)
    made, given = inherit(teacher, CUT), samples()
    for name, inputs in (("image", given.pixels), ("text", given.input_ids)):
        tower, sizes = getattr(teacher.model, name), getattr(CUT, name)
        blocks = tower.config.blocks
        kept = {CHANNELS: (blocks.width, sizes.width)}  # evenly spread, as `uniform` does
        for place, _ in tower.named_modules():
            if place.endswith("fc2"):
                kept[place] = (blocks.mlp_width, sizes.mlp_width)
            elif place.endswith("attention.out") or (place == "head.out" and shape == "siglip"):
                kept[place] = (blocks.heads, sizes.heads)

        def mask(place: str, kept: dict[str, Any] = kept, sizes: TowerPlan = sizes) -> Tensor | None:
            if place == LAYERS:
                return torch.zeros(3).index_fill(0, torch.tensor(sizes.layers), 1.0)
            if place not in kept:
                return None
            total, count = kept[place]
            found = torch.zeros(total)
            found[torch.linspace(0, total - 1, count, dtype=torch.float64).round().long()] = 1
            return found

        with torch.no_grad(), masked(tower, mask):
            said = tower(inputs)
        with torch.no_grad():
            torch.testing.assert_close(said, getattr(made.model, name)(inputs), rtol=0, atol=3e-6)
            assert not torch.allclose(said, tower(inputs))  # nothing stays masked


def hidden_blocks(teacher: Source) -> Source:
    """The teacher whose image tower does all of its work in blocks 1 and 4 of 6."""
    with torch.no_grad():
        for number, block in enumerate(teacher.model.image.blocks):  # type: ignore[union-attr]
            if number not in (1, 4):
                for layer in (block.attention.out, block.mlp.fc2):
                    layer.weight.mul_(0.01)
                    layer.bias.zero_()
    return teacher


def test_the_blocks_that_work_are_found() -> None:
    """Evenly spread, 2 of 6 would be the first and the last, which do nothing."""
    teacher = hidden_blocks(clip_source(layers=6))
    even, learned = (
        inherit(teacher, StudentPlan(TowerPlan(layers=2), importance=kind), samples(32))
        for kind in ("uniform", "learned")
    )
    assert away(learned, teacher)[0] < 0.01 < away(even, teacher)[0]
    mine, its = learned.model.state_dict(), teacher.model.state_dict()
    for new, old in enumerate((1, 4)):
        name = "attention.qkv.weight"
        assert torch.equal(mine[f"image.blocks.{new}.{name}"], its[f"image.blocks.{old}.{name}"])


@pytest.mark.parametrize("shape", ["siglip", pytest.param("coca", marks=pytest.mark.parity)])
def test_what_is_learned_is_nearer_than_what_it_began_with(shape: str) -> None:
    teacher = clip_source(shape, layers=3)
    plan = StudentPlan(TowerPlan(2, 40, 2, 64), TowerPlan(2, 24, 1, 48))
    begun, learned = (
        away(inherit(teacher, replace(plan, importance=kind), samples(64)), teacher)
        for kind in ("gradients", "learned")
    )
    assert sum(learned) < sum(begun)


def test_experts_have_masks_of_their_own() -> None:
    teacher = moe_source((4, 2))
    made = inherit(teacher, StudentPlan(TowerPlan(1, 40, 2, 60), importance="learned"), samples(16))
    assert made.model.image.blocks[0].mlp.experts[1].fc1.weight.shape == (60, 40)  # type: ignore[union-attr]
    assert made.model.config.image.blocks.moe.experts in ((4,), (2,))  # type: ignore[attr-defined]
    assert embeddings(made)[0].isfinite().all()


def test_blocks_that_are_named_stay_those() -> None:
    teacher = hidden_blocks(clip_source(layers=6))
    made = inherit(teacher, StudentPlan(TowerPlan((0, 3), mlp_width=48), importance="learned"), samples(16))
    mine, its = made.model.state_dict(), teacher.model.state_dict()
    assert torch.equal(mine["image.blocks.1.norm1.weight"], its["image.blocks.3.norm1.weight"])


def test_the_same_samples_give_the_same_student_and_leave_the_teacher_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learned_choice, "STEPS", 11)
    teacher, plan = clip_source(layers=4), StudentPlan(TowerPlan(2, mlp_width=40), importance="learned")
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    asked = [parameter.requires_grad for parameter in teacher.model.parameters()]
    one, other = (inherit(teacher, plan, samples(16)) for _ in range(2))
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])
    assert one.digest == other.digest != inherit(teacher, plan, samples(16, seed=8)).digest
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())
    assert [parameter.requires_grad for parameter in teacher.model.parameters()] == asked
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_nothing_to_choose_is_nothing_learned() -> None:
    teacher = clip_source()
    tower: Any = teacher.model.image
    importance = {"blocks.0.mlp.fc2": torch.arange(96.0)}
    found = learn_choice(tower, importance, {"blocks.0.mlp.fc2": 96}, samples(8).pixels)
    assert found == importance
    assert best(torch.tensor([1.0, 3.0, 3.0, 0.0, 3.0]), 2).tolist() == [1, 2]


def test_it_is_asked_for_by_name() -> None:
    teacher = hidden_blocks(clip_source(layers=6))
    name = "inherit:image.layers=2,importance=learned"
    assert needs_samples(name)
    assert away(student(teacher, name, samples=samples(32)), teacher)[0] < 0.01
    mended = student(teacher, f"{name},mend=true", samples=samples(32))
    assert away(mended, teacher)[0] < 0.01


@pytest.mark.parametrize("count", [0, 7])
def test_too_few_samples_are_refused(count: int) -> None:
    plan = StudentPlan(TowerPlan(1), importance="learned")
    with pytest.raises(
        InputError, match=f"importance learned: expected 8 pairs or more to fit to, got {count}"
    ):
        inherit(clip_source(), plan, samples(count) if count else None)
