"""A student's name says what it is, how it starts, and nothing is taken for another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeclip.errors import EdgeClipError, InputError, SourceError
from edgeclip.export.api import export_bundle
from edgeclip.models.clip import Clip, ImageTower
from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig, TransformerConfig
from edgeclip.models.dense_experts import one_expert
from edgeclip.models.feed_forward import moe_layers
from edgeclip.models.importance import PairSamples
from edgeclip.models.inherit import planned
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.students import STUDENTS, Sizes, is_made, plan_of, slug, student
from edgeclip.models.training.checkpoint import write_source
from edgeclip.models.training.objectives.info_nce import info_nce
from edgeclip.models.training.starts import initialise
from tests.checkpoints import roughen  # brings a torchvision that timm can import
from tests.export.sources import clip_source, made_source, nano_source
from tests.mixtures import moe_source
from tests.models.test_inherit import embeddings, samples


def b_shaped(patch: int = 16) -> Source:
    """Sizes of a ViT-B and its text tower, without weights: for what is told from sizes alone."""
    with torch.device("meta"):
        model = Clip(b_config(patch))
    return made_source(model, 512, clip_source().text)  # type: ignore[arg-type]


def b_config(patch: int, vocabulary: int = 49408) -> ClipConfig:
    return ClipConfig(
        512,
        ImageConfig(TransformerConfig(768, 12, 12, 3072), (224, 224), patch),
        TextConfig(TransformerConfig(512, 12, 8, 2048), vocabulary, 77, eos_id=vocabulary - 1),
    )


def blocks(source: Source, tower: str) -> TransformerConfig:
    found: TransformerConfig = getattr(source.model.config, tower).blocks  # type: ignore[union-attr,arg-type]
    return found


def steps_down(source: Source, given: PairSamples) -> list[float]:
    """The loss before and after a step of training: every parameter moves it."""
    model: Any = source.model.requires_grad_(True).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        rows = [
            torch.nn.functional.normalize(row, dim=-1)
            for row in (model.encode_image(given.pixels), model.encode_text(given.input_ids))
        ]
        loss = info_nce(*rows, model.logit_scale.exp())
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize("name", [name for name in STUDENTS if "-16" not in name and "-32" not in name])
def test_every_share_is_made_and_trains(name: str) -> None:
    teacher = clip_source(layers=2)
    made = student(teacher, name)
    before, after = steps_down(made, samples(4))
    assert after < before
    assert made.spec == f"{name} of made-up"
    assert made.name == f"made-up-{name}"
    assert made.licence == teacher.licence


@pytest.mark.parametrize(
    ("name", "patch", "image", "text", "millions"),
    [
        # TinyCLIP's names say the image tower's millions
        ("61m-32", 32, (640, 12, 10), (512, 9, 8), 61),
        ("40m-32", 32, (512, 12, 8), (512, 6, 8), 40),
        ("39m-16", 16, (512, 12, 8), (512, 6, 8), 39),
        ("8m-16", 16, (256, 10, 4), (256, 3, 4), 8),
        ("half", 16, (384, 12, 6), (512, 6, 8), 22),
        ("half-both", 16, (384, 6, 6), (256, 6, 4), 11),
    ],
)
def test_sizes_of_a_real_teacher(name: str, patch: int, image: Any, text: Any, millions: int) -> None:
    teacher = b_shaped(patch)
    plan = plan_of(teacher, name)
    made = {
        tower: planned(getattr(teacher.model, tower), getattr(plan, tower), False, tower).config
        for tower in ("image", "text")
    }
    for tower, sizes in (("image", image), ("text", text)):
        got = made[tower].blocks
        assert (got.width, got.layers, got.heads) == sizes
        assert got.head_width == 0
        assert got.mlp_width == 4 * got.width
    with torch.device("meta"):
        tower = ImageTower(made["image"], 512)
    assert round(sum(parameter.numel() for parameter in tower.parameters()) / 1e6) == millions


def test_sizes_in_a_name() -> None:
    made = student(
        clip_source(layers=3),
        "inherit:image.layers=0/2,image.width=40,text.layers=1,embed_dim=12,importance=uniform",
    )
    assert blocks(made, "image") == replace(blocks(clip_source(), "image"), layers=2, width=40, head_width=16)
    assert blocks(made, "text").layers == 1
    assert made.embedding_dim == 12
    full = student(clip_source(), "inherit:")
    assert all(
        torch.equal(mine, its) for mine, its in zip(embeddings(full), embeddings(clip_source()), strict=True)
    )


def test_a_convolutional_tower_of_timm() -> None:
    pytest.importorskip("timm")
    teacher = clip_source()
    made, again, other = (student(teacher, "timm:test_resnet", seed=seed) for seed in (1, 1, 2))
    assert type(made.model.image).__name__ == "TimmTower"
    rows = [embeddings(source) for source in (made, again, other)]
    assert torch.equal(rows[0][0], rows[1][0])
    assert not torch.equal(rows[0][0], rows[2][0])
    assert torch.equal(rows[0][1], embeddings(teacher)[1])  # the teacher's text tower
    assert made.digest == again.digest != other.digest
    shorter = student(teacher, "inherit:text.layers=1+timm:test_resnet")
    assert blocks(shorter, "text").layers == 1
    assert type(shorter.model.image).__name__ == "TimmTower"
    assert shorter.pooling == "avg/eos"


def test_a_plain_transformer_of_timm_is_canonical() -> None:
    pytest.importorskip("timm")
    side = replace(clip_source(), preprocessing=replace(clip_source().preprocessing, size=(160, 160)))  # type: ignore[type-var]
    made = student(side, "timm:test_vit")
    assert type(made.model.image) is ImageTower
    assert made.model.image(torch.zeros(1, 3, 160, 160)).shape == (1, 24)
    with pytest.raises(
        InputError, match=r"timm makes no image tower of it for the teacher's pictures of 32x32"
    ):
        student(clip_source(), "timm:vit_tiny_patch16_224")


def test_experts_become_one() -> None:
    teacher = moe_source((4, 2), (0, 2))
    first, mean, measured = (
        student(teacher, name, samples=given)
        for name, given in (("dense:0", None), ("dense:mean", None), ("dense:mean", samples()))
    )
    own = teacher.model.image.blocks[0].mlp.experts  # type: ignore[union-attr]
    for source in (first, mean, measured):
        assert not moe_layers(source.model)
        assert all(row.isfinite().all() for row in embeddings(source))
    weights = [source.model.image.blocks[0].mlp.fc1.weight for source in (first, mean, measured)]  # type: ignore[union-attr]
    assert torch.equal(weights[0], own[0].fc1.weight)
    torch.testing.assert_close(weights[1], sum(expert.fc1.weight for expert in own) / 4)
    assert (weights[2] - weights[1]).abs().max() > 1e-4
    third = one_expert(teacher, "3")
    assert torch.equal(third.model.image.blocks[0].mlp.fc1.weight, own[3].fc1.weight)  # type: ignore[union-attr]
    assert torch.equal(
        third.model.image.blocks[1].mlp.fc1.weight,  # type: ignore[union-attr]
        teacher.model.image.blocks[1].mlp.experts[1].fc1.weight,  # type: ignore[union-attr]
    )
    assert student(teacher, "dense:0+half-depth").model.config.image.blocks.layers == 1  # type: ignore[attr-defined]
    assert len({source.digest for source in (teacher, first, mean, measured, third)}) == 5


def test_equal_experts_stay_what_they_are() -> None:
    teacher = moe_source((3, 3), spread=0.0)
    for name in ("dense:mean", "dense:2"):
        for mine, its in zip(embeddings(student(teacher, name)), embeddings(teacher), strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=2e-6)


def test_a_new_one_has_only_the_sizes() -> None:
    teacher = clip_source()
    made, again, other = (student(teacher, "new:half-width", seed=seed) for seed in (1, 1, 2))
    like = student(teacher, "half-width")
    assert made.model.config == like.model.config  # type: ignore[attr-defined]
    rows = [embeddings(source)[0] for source in (made, again, other, like)]
    assert torch.equal(rows[0], rows[1])
    assert all(not torch.equal(rows[0], row) for row in rows[2:])
    assert made.name == "made-up-new-half-width"


def test_another_source_is_taken_as_it_is(tmp_path: Path) -> None:
    write_source(tmp_path / "other", nano_source())
    made = student(clip_source(), str(tmp_path / "other"))
    assert made.family == "nano"
    assert made.spec == str(tmp_path / "other")
    new = student(clip_source(), f"new:{tmp_path / 'other'}")
    assert new.family == "nano"
    assert not torch.equal(*(source.model.text.embedding.weight for source in (made, new)))  # type: ignore[union-attr,arg-type]


def test_what_is_made_loads_nothing() -> None:
    made = ("half", "inherit:image.layers=1", "dense:0+half", "new:timm:resnet18", "new:dense:0+half")
    assert all(is_made(name) for name in made)
    assert not any(is_made(name) for name in ("hf:a/b", "new:hf:a/b", "half+hf:a/b", "nano", "/tmp", ""))
    assert (
        slug("inherit:image.width=40,text.layers=0/1+timm:x")
        == "inherit-image.width-40-text.layers-0-1-timm-x"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "half-depht",
            r"no such student; did you mean half-depth\? There are full, .*, new:\.\.\., or name a source",
        ),
        ("tim:resnet18", r"'tim:resnet18': no such student; did you mean timm\?"),
        ("", r"student '': no such student"),
        ("half+", r"student '': no such student"),
        ("39m-16", r"of teachers with patches of 16 pixels, made-up has 8. Name half"),
        ("inherit:image.layer=1", r"no setting 'layer'; did you mean layers\?"),
        ("inherit:image.layers=a", r"expected a whole|expected a number"),
        ("inherit:image.layers=0/x", r"image.layers: expected numbers of blocks as 0/5/11, got '0/x'"),
        ("inherit:image.width=0x", r"expected a number"),
        ("inherit:importance=luck", r"expected one of weights"),
        ("inherit:image.layers=7", r"image.layers: expected 1 to 2, what the teacher has, got 7"),
        ("dense:mean", r"no mixture of experts"),
        ("timm:resnet18000", r"timm makes no image tower of it .* has no model of that name"),
        ("timm:hf_hub:timm/resnet18.a1_in1k", r"has no model of that name"),
    ],
)
def test_names_that_mean_nothing_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        student(clip_source(), name)
    assert "\n" not in str(caught.value)


def test_teachers_without_such_students_are_refused() -> None:
    with pytest.raises(InputError, match="dense:4: expected mean, or an expert's number from 0 to 3"):
        student(moe_source(), "dense:4")
    with pytest.raises(SourceError, match="student half: made-up is a NanoCLIP, and this needs a plain CLIP"):
        student(nano_source(), "half")
    other = clip_source("resnet")
    with pytest.raises(
        SourceError, match="a tower of made-up is of kind 'resnet', whose sizes cannot be changed"
    ):
        student(other, "half-width")
    assert blocks(student(other, "short-text"), "text").layers == 1


@pytest.mark.parity
@pytest.mark.parametrize("name", ["half-both", "timm:test_resnet", "inherit:image.heads=2,text.heads=1"])
@pytest.mark.parametrize("shape", ["openai", "siglip"])
def test_a_student_becomes_a_bundle(name: str, shape: str, tmp_path: Path) -> None:
    report = export_bundle(student(clip_source(shape), name), tmp_path / "bundle")
    assert all(parity.fidelity.max_abs < 2e-6 for parity in report.parities)


@pytest.mark.parity
@pytest.mark.parametrize("name", [*STUDENTS, "inherit:image.heads=9,image.mlp_width=2000"])
def test_students_of_a_real_teacher(name: str, tmp_path: Path) -> None:
    """A ViT-B/32 with random weights, or B/16: bit-equal at full width; its students of every size load, train a step and export."""
    sizes = STUDENTS.get(name)
    torch.manual_seed(0)
    model = Clip(b_config(sizes.patch_size if isinstance(sizes, Sizes) else 32, 259))
    initialise(model)
    roughen(model)
    base = clip_source()
    teacher = made_source(model.eval(), 512, replace(base.text, context_length=77))  # type: ignore[type-var]
    teacher = replace(teacher, preprocessing=replace(base.preprocessing, size=(224, 224)))  # type: ignore[type-var]
    given = replace(samples(2), pixels=torch.randn(2, 3, 224, 224))
    for mine, its in zip(
        embeddings(student(teacher, "full"), given), embeddings(teacher, given), strict=True
    ):
        assert torch.equal(mine, its)
    write_source(tmp_path / "student", student(teacher, name))
    made = load_source(str(tmp_path / "student"))
    before, after = steps_down(made, given)
    assert after < before
    export_bundle(made, tmp_path / "bundle")


def test_errors_are_of_the_package() -> None:
    with pytest.raises(EdgeClipError):
        student(clip_source(), "hf:")
