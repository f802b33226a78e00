"""`edgeclip experts`: use, a smaller source, the curve, and what it refuses."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeclip.export.samples import made_up_pictures
from edgeclip.models.feed_forward import moe_layers
from edgeclip.models.sources import load_source, save_source
from tests.cli.conftest import Edgeclip
from tests.export.sources import PREPROCESSING, TEXT, clip_source
from tests.mixtures import moe_source

Saved = Callable[..., Path]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(made_up_pictures(8)):
        Image.fromarray(np.asarray(picture)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """(image experts, text experts) -> a source folder; none: a dense one."""
    folders: dict[tuple[object, ...], Path] = {}

    def make(*counts: tuple[int, ...]) -> Path:
        if counts not in folders:
            source = moe_source(*counts) if counts else clip_source()
            folders[counts] = tmp_path_factory.mktemp("source") / "moe"
            save_source(
                folders[counts], model=source.model, preprocessing=PREPROCESSING, text=TEXT,
                tokenizer_json=source.tokenizer_json, licence=source.licence,
            )  # fmt: skip
        return folders[counts]

    return make


def test_without_an_action_it_shows_the_use_of_each_expert(
    saved: Saved, photos: Path, edgeclip: Edgeclip
) -> None:
    said = edgeclip("experts", saved((4, 0), (0, 3)), "--images", photos, "--json").record
    assert list(said["use"]) == ["image.blocks.0.mlp", "text.blocks.1.mlp"]
    assert said["curve"] == []
    assert "path" not in said
    for found, count, tokens in zip(said["use"].values(), (4, 3), (8 * 17, 38), strict=True):
        assert len(found["use"]) == count
        assert sum(found["use"]) == pytest.approx(1, abs=1e-5)
        assert (found["tokens"], found["top_k"]) == (tokens, 2)
    shown = edgeclip("experts", saved((4, 0), (0, 3)), "--images", photos)
    assert shown.code == 0
    assert "image.blocks.0" in shown.out
    assert f"{said['use']['image.blocks.0.mlp']['use'][3]:.1%}" in shown.out


def test_texts_of_ones_own_are_counted(
    saved: Saved, photos: Path, tmp_path: Path, edgeclip: Edgeclip
) -> None:
    (tmp_path / "texts.txt").write_text("a cat\na dog\n", encoding="utf-8")
    said = edgeclip(
        "experts", saved((4, 0), (0, 3)), "--images", photos, "--texts", tmp_path / "texts.txt", "--json"
    )
    assert said.record["use"]["text.blocks.1.mlp"]["tokens"] == 2  # the last block: one token of each


@pytest.mark.parametrize("action", [("--keep", 3), ("--keep", 3, "--merge"), ("--prune-below", 0.2)])
def test_an_action_writes_a_source_that_loads(
    action: tuple[object, ...], saved: Saved, photos: Path, tmp_path: Path, edgeclip: Edgeclip
) -> None:
    said = edgeclip(
        "experts", saved((4, 4)), "--images", photos, *action, "-o", tmp_path / "fewer", "--json"
    ).record
    source = load_source(str(tmp_path / "fewer"))
    assert said["digest"] == source.digest
    layers = moe_layers(source.model)
    assert {name: len(layer.experts) for name, layer in layers.items()} == {
        name: len(groups) for name, groups in said["experts"].items()
    }
    parts = [len(group) for group in said["experts"]["image.blocks.0.mlp"]]
    assert sum(parts) < 4 or "--merge" in action
    assert max(parts) == (2 if "--merge" in action else 1)
    again = edgeclip("experts", saved((4, 4)), "--images", photos, *action, "-o", tmp_path / "fewer")
    assert again.code == 2
    assert "already exists" in again.line


def test_the_curve_falls_with_the_experts(
    saved: Saved, photos: Path, tmp_path: Path, edgeclip: Edgeclip
) -> None:
    picture = tmp_path / "curve.svg"
    said = edgeclip(
        "experts", saved((3, 3)), "--images", photos, "--curve", "--picture", picture, "--json"
    ).record
    points = said["curve"]
    names = [(point["way"], point["keep"]) for point in points]
    assert names == [("whole", 3), ("dropped", 2), ("merged", 2), ("dropped", 1), ("merged", 1)]
    whole, two, _, one, _ = (point["sizes"] for point in points)
    expert, router = 48 * 96 * 2 + 96 + 48, 48
    # two blocks; each loses an expert and its row, and with the second to last the router
    assert whole["parameters"] - two["parameters"] == 2 * (expert + router)
    assert two["parameters"] - one["parameters"] == 2 * (expert + 2 * router)
    assert whole["parameters"] - whole["active"] == 2 * expert  # top-2 of three
    assert two["parameters"] == two["active"]
    assert one["fp32_bytes"] == 4 * one["parameters"]
    assert one["int8_bytes"] < one["fp32_bytes"]
    exact = points[0]["fidelity"]["image"]
    assert (exact["relative_distance"], exact["samples"]) == (0, 4)  # the other half was counted
    assert points[3]["fidelity"]["image"]["relative_distance"] > 0
    words = " ".join(ET.parse(picture).getroot().itertext())
    assert "image tower" in words
    assert "2 merged" in words
    shown = edgeclip("experts", saved((3, 3)), "--images", photos, "--curve")
    assert "neighbours" in shown.out


REFUSED = [
    ((), ("--images", "PHOTOS"), "no mixture of experts"),
    (((4, 4),), (), "--images: missing. The image tower has experts"),
    (((4, 4),), ("--images", "PHOTOS", "--texts", "t.txt"), "--texts: the text tower has no experts"),
    (((), (3, 3)), ("--images", "PHOTOS"), "--images: the image tower has no experts"),
    (((4, 4),), ("--images", "PHOTOS", "--keep", 5, "-o", "OUT"), "keep 5: expected 1 to 4"),
    (
        ((4, 4),),
        ("--images", "PHOTOS", "--prune-below", 2, "-o", "OUT"),
        "below 2.0: expected a share above 0",
    ),
    (
        ((4, 4),),
        ("--images", "PHOTOS", "--keep", 1, "--merge-above", 0.9, "-o", "OUT"),
        "--keep and --merge-above: expected one",
    ),
    (((4, 4),), ("--images", "PHOTOS", "--keep", 1), "--keep: Missing option '-o'"),
    (((4, 4),), ("--images", "PHOTOS", "-o", "OUT"), "nothing to write"),
    (((4, 4),), ("--images", "PHOTOS", "--merge"), "--merge says how --keep gets there"),
    (((4, 4),), ("--images", "PHOTOS", "--picture", "a.svg"), "--picture draws the curve"),
    (((4, 4),), ("--images", "PHOTOS", "--curve", "--picture", "a.png"), "ends in .svg"),
]


@pytest.mark.parametrize(("counts", "arguments", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_refusals(
    counts: tuple[tuple[int, ...], ...], arguments: tuple[object, ...], message: str, saved: Saved, photos: Path,
    tmp_path: Path, edgeclip: Edgeclip,
) -> None:  # fmt: skip
    places = {"PHOTOS": photos, "OUT": tmp_path / "out"}
    said = edgeclip("experts", saved(*counts), *(places.get(str(a), a) for a in arguments))
    assert said.code == 2
    assert message in said.line
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_no_source(photos: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    (tmp_path / "bundle.json").write_text("{}", encoding="utf-8")
    said = edgeclip("experts", tmp_path, "--images", photos)
    assert said.code == 2
    assert "is a bundle, whose graphs are finished. Pass the source" in said.line


def test_a_curve_needs_two_halves(saved: Saved, photos: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(photos.iterdir())[:5]:
        (few / path.name).write_bytes(path.read_bytes())
    said = edgeclip("experts", saved((4, 4)), "--images", few, "--curve")
    assert said.code == 2
    assert "image: at least 8 samples are needed" in said.line
