"""A student keeps its teacher's parts whole: which ones, in their order, and what it then says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeclip.errors import InputError, SourceError
from edgeclip.models.importance import PairSamples, tower_scores
from edgeclip.models.inherit import StudentPlan, TowerPlan, inherit, spread
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.training.checkpoint import write_source
from tests.export.sources import LENGTH, SHAPES, SIDE, clip_source, nano_source
from tests.mixtures import moe_source

# SHAPES' canonical towers: image width 48 with 3 heads of 16 and 96 units, text width 32 with 2 heads of 16
CANONICAL = [name for name in SHAPES if name != "resnet"]
SMALLER = StudentPlan(TowerPlan(1, 40, 2, 60), TowerPlan(2, 24, 1, 50), embed_dim=20)


def samples(count: int = 6, seed: int = 3) -> PairSamples:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 257, (count, LENGTH), generator=generator)
    ids[:, -4] = 258
    ids[:, -3:] = 0
    return PairSamples(torch.randn(count, 3, SIDE, SIDE, generator=generator), ids)


def embeddings(source: Source, given: PairSamples | None = None) -> list[Tensor]:
    given = given or samples()
    with torch.no_grad():
        return [
            source.model.encode_image(given.pixels),
            source.model.encode_text(given.input_ids),
        ]


@pytest.mark.parametrize("shape", CANONICAL)
def test_a_plan_that_asks_for_nothing_gives_the_teachers_own_bits(shape: str) -> None:
    teacher = clip_source(shape)
    config: Any = teacher.model.config
    own = StudentPlan(
        *(
            TowerPlan(b.layers, b.width, b.heads, b.mlp_width)
            for b in (config.image.blocks, config.text.blocks)
        ),
        embed_dim=teacher.embedding_dim,
    )
    for plan in (StudentPlan(), own):
        made = inherit(teacher, plan)
        assert made.model.config == config
        state = made.model.state_dict()
        assert list(state) == list(teacher.model.state_dict())
        for name, value in teacher.model.state_dict().items():
            assert torch.equal(state[name], value), name
            assert state[name].data_ptr() != value.data_ptr()
        for mine, its in zip(embeddings(made), embeddings(teacher), strict=True):
            assert torch.equal(mine, its)


@pytest.mark.parametrize("shape", CANONICAL)
def test_every_shape_is_cut_saved_and_opened_again(shape: str, tmp_path: Path) -> None:
    teacher = clip_source(shape)
    made = inherit(teacher, SMALLER)
    sizes = made.model.config.image.blocks, made.model.config.text.blocks  # type: ignore[attr-defined]
    assert [(b.layers, b.width, b.heads, b.mlp_width, b.head_width) for b in sizes] == [
        (1, 40, 2, 60, 16),
        (2, 24, 1, 50, 16),
    ]
    rows = embeddings(made)
    assert [tuple(row.shape) for row in rows] == [(6, 20), (6, 20)]
    assert all(row.isfinite().all() for row in rows)
    write_source(tmp_path / "student", made)
    for mine, its in zip(rows, embeddings(load_source(str(tmp_path / "student"))), strict=True):
        assert torch.equal(mine, its)


def test_blocks_are_those_named_in_their_order() -> None:
    teacher = clip_source(layers=5)
    for layers, numbers in ((3, (0, 2, 4)), ((1, 2), (1, 2)), (1, (0,))):
        made = inherit(teacher, StudentPlan(text=TowerPlan(layers=layers)))  # type: ignore[arg-type]
        mine, its = made.model.state_dict(), teacher.model.state_dict()
        for new, old in enumerate(numbers):
            for part in ("attention.qkv.weight", "mlp.fc2.weight", "norm1.bias"):
                assert torch.equal(mine[f"text.blocks.{new}.{part}"], its[f"text.blocks.{old}.{part}"])
        assert made.model.config.text.blocks.layers == len(numbers)  # type: ignore[attr-defined]
    assert [spread(count, 12) for count in (2, 4, 6)] == [(0, 11), (0, 4, 7, 11), (0, 2, 4, 7, 9, 11)]


def dead(teacher: Source, *, heads: bool = False, units: bool = False) -> Source:
    """The teacher with parts of its image tower that do nothing: head 0 of every block, every third unit."""
    with torch.no_grad():
        for block in teacher.model.image.blocks:  # type: ignore[union-attr]
            if heads:
                block.attention.out.weight[:, :16] = 0
            if units:
                block.mlp.fc2.weight[:, ::3] = 0
    return teacher


@pytest.mark.parametrize("importance", ["weights", "activations", "gradients"])
def test_what_does_nothing_goes_first(importance: Any) -> None:
    """Heads and units that are cut at no loss: q, k, v and both sides of a feed-forward are cut alike."""
    teacher = dead(clip_source(), heads=True, units=True)
    plan = StudentPlan(TowerPlan(heads=2, mlp_width=64), importance=importance)
    made = inherit(teacher, plan, samples())
    for mine, its in zip(
        embeddings(made, samples(seed=9)), embeddings(teacher, samples(seed=9)), strict=True
    ):
        torch.testing.assert_close(mine, its, rtol=0, atol=2e-6)
    qkv = made.model.image.blocks[0].attention.qkv  # type: ignore[union-attr]
    assert tuple(qkv.weight.shape) == (96, 48)  # heads of 16 at the full width of 48
    evenly = inherit(teacher, replace(plan, importance="uniform"))
    assert (embeddings(evenly)[0] - embeddings(teacher)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("importance", ["weights", "activations", "gradients"])
def test_a_channel_that_nobody_reads_goes_first(importance: Any) -> None:
    teacher = clip_source()
    unread = [3, 20, 41]
    with torch.no_grad():
        tower: Any = teacher.model.image
        for block in tower.blocks:
            block.attention.qkv.weight[:, unread] = 0
            block.mlp.fc1.weight[:, unread] = 0
        tower.projection.weight[:, unread] = 0
    made = inherit(teacher, StudentPlan(TowerPlan(width=45), importance=importance), samples())
    kept = [channel for channel in range(48) if channel not in unread]
    assert torch.equal(made.model.image.class_token, tower.class_token[kept])  # type: ignore[union-attr]
    assert torch.equal(made.model.image.position, tower.position[:, kept])  # type: ignore[union-attr]
    fc2 = made.model.image.blocks[1].mlp.fc2  # type: ignore[union-attr]
    assert torch.equal(fc2.weight, tower.blocks[1].mlp.fc2.weight[kept])


def test_gradients_agree_with_leaving_a_unit_out() -> None:
    """First order: the scores rank units as the change of each picture's loss does when one is scaled by a little."""
    teacher, given = clip_source(layers=1), samples(8)
    scores = tower_scores(teacher.model, "gradients", given)["image"]["blocks.0.mlp.fc2"]
    weight: Tensor = teacher.model.image.blocks[0].mlp.fc2.weight  # type: ignore[union-attr]

    def loss() -> Tensor:
        image, text = (F.normalize(row.double(), dim=-1) for row in embeddings(teacher, given))
        logits = float(teacher.model.logit_scale.exp()) * image @ text.T
        own = torch.arange(len(logits))
        return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)

    measured = []
    with torch.no_grad():
        for unit in range(0, 96, 8):
            kept = weight[:, unit].clone()
            changes = []
            for factor in (1.05, 0.95):
                weight[:, unit] = kept * factor
                changes.append(loss())
            weight[:, unit] = kept
            measured.append(float(changes[0] - changes[1]) ** 2)
    both = torch.stack([scores[::8].argsort().argsort(), torch.tensor(measured).argsort().argsort()]).float()
    assert torch.corrcoef(both)[0, 1] > 0.5


def test_a_smaller_embedding_keeps_cosines() -> None:
    """Both towers are turned onto the same directions: when nothing lies in the others, cosines are what they were."""
    teacher = clip_source()
    basis = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(5)))[0]
    with torch.no_grad():  # each tower has directions that the other lacks
        for tower, own in ((teacher.model.image, basis[:, :7]), (teacher.model.text, basis[:, 3:10])):
            tower.projection.weight.copy_(own @ own.T @ tower.projection.weight)  # type: ignore[union-attr,operator]
    made = inherit(teacher, StudentPlan(embed_dim=10))
    cosines = [
        F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        for image, text in (embeddings(source) for source in (teacher, made))
    ]
    torch.testing.assert_close(cosines[1], cosines[0], rtol=0, atol=1e-5)
    assert made.embedding_dim == 10


def test_experts_are_cut_each_by_itself() -> None:
    teacher = moe_source((4, 2))
    made = inherit(teacher, StudentPlan(TowerPlan((1,), 40, 2, 60)))
    assert made.model.config.image.blocks.moe.experts == (2,)  # type: ignore[attr-defined]
    assert made.model.image.blocks[0].mlp.experts[1].fc1.weight.shape == (60, 40)  # type: ignore[union-attr]
    assert embeddings(made)[0].isfinite().all()
    dense = inherit(moe_source((0, 4)), StudentPlan(TowerPlan((0,))))
    assert dense.model.config.image.blocks.moe is None  # type: ignore[attr-defined]


def test_identity_follows_plan_and_teacher() -> None:
    teacher = clip_source()
    made = [
        inherit(teacher, StudentPlan()),
        inherit(teacher, SMALLER),
        inherit(teacher, replace(SMALLER, importance="uniform")),
        inherit(replace(teacher, digest="1" * 64), SMALLER),
        teacher,
    ]
    assert len({source.digest for source in made}) == len(made)
    assert inherit(teacher, SMALLER).digest == made[1].digest


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (StudentPlan(TowerPlan(width=49)), r"image.width: expected 1 to 48, what the teacher has, got 49"),
        (StudentPlan(text=TowerPlan(heads=-1)), r"text.heads: expected 1 to 2"),
        (StudentPlan(text=TowerPlan(mlp_width=97)), r"text.mlp_width: expected 1 to 96"),
        (StudentPlan(TowerPlan(layers=3)), r"image.layers: expected 1 to 2"),
        (StudentPlan(TowerPlan(layers=(1, 0))), r"image.layers: expected rising numbers of 0 to 1, got 1, 0"),
        (StudentPlan(TowerPlan(layers=(0, 2))), r"rising numbers of 0 to 1"),
        (StudentPlan(TowerPlan(layers=())), r"got none"),
        (StudentPlan(embed_dim=25), r"embed_dim: expected 1 to 24"),
        (replace(SMALLER, importance="activations"), r"expected pairs to measure on, got none. Use weights"),
        (replace(SMALLER, importance="luck"), r"importance 'luck': expected one of weights, activations"),  # type: ignore[arg-type]
    ],
)
def test_what_a_teacher_does_not_have_is_refused(plan: StudentPlan, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        inherit(clip_source(), plan)
    assert "\n" not in str(caught.value)


def test_towers_that_are_not_canonical_are_refused() -> None:
    other = clip_source("resnet")
    with pytest.raises(SourceError, match="the image tower is a ResNetTower, whose sizes cannot be changed"):
        inherit(other, StudentPlan(TowerPlan(layers=1)))
    with pytest.raises(SourceError, match="the image tower is a ResNetTower"):
        inherit(other, StudentPlan(embed_dim=8))
    made = inherit(other, StudentPlan(text=TowerPlan(layers=1)))
    assert made.model.config.text.blocks.layers == 1  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match="only a CLIP's towers can be inherited, this is a NanoCLIP"):
        inherit(nano_source(), StudentPlan())
    given = samples(3)
    with pytest.raises(InputError, match="got 3 pictures and 2 texts"):
        inherit(
            clip_source(),
            replace(SMALLER, importance="activations"),
            replace(given, input_ids=given.input_ids[:2]),
        )
