"""Regions in an index: planted detectors and encoders, whose regions are known by arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgeclip
from edgeclip import InputError, Model
from edgeclip.runtime.index import regions
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.regions import best_of_each, region_key, regions_of
from edgeclip.runtime.index.types import Hit
from tests.mutants import broken
from tests.runtime.detectors import make_detector, scene
from tests.runtime.regions import make_regions

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
RED_BOX, BLUE_BOX = (0, 0, 16, 16), (64, 48, 80, 64)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with edgeclip.load(make_regions(tmp_path_factory.mktemp("regions") / "b"), threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    bundle = make_detector(tmp_path_factory.mktemp("detector") / "b", objectness=True)
    with edgeclip.load(bundle, threads=1) as model:
        yield model


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """128 x 64 pixels in cells of 16: red, green and blue ones on black; and a green and a blue one alone."""
    scenes = [{(0, 0): RED, (0, 7): GREEN, (3, 4): BLUE}, {(1, 1): GREEN, (3, 4): BLUE}]
    found = [str(tmp_path / f"{name}.png") for name in ("three", "two")]
    for path, cells in zip(found, scenes, strict=True):
        Image.fromarray(scene(cells, 128, 64, cell=16)).save(path)
    return found


@pytest.fixture
def index(encoder: Model, tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "x.index", encoder) as opened:
        yield opened


def fill(index: Index, model: Model, paths: list[str], **asked: Any) -> list[int]:
    """Add the regions of pictures; how many each gave."""
    counts = []
    for found in regions_of(model, paths, **asked):
        assert not isinstance(found, InputError)
        counts.append(len(index.add(found[1], found[0])))
    return counts


def test_boxes_become_items(index: Index, encoder: Model, paths: list[str]) -> None:
    assert fill(index, encoder, paths, boxes=[[RED_BOX, BLUE_BOX, RED_BOX], [BLUE_BOX]]) == [2, 1]
    three, two = paths
    assert list(index.keys()) == [f"{three}#0,0,16,16", f"{three}#64,48,80,64", f"{two}#64,48,80,64"]
    key = f"{three}#64,48,80,64"
    item, row = index.get([key])[key], index.vectors([key])[0]
    size = Path(three).stat().st_size
    assert (item.record["path"], item.record["box"], item.record["size"]) == (three, [64, 48, 80, 64], size)
    np.testing.assert_allclose(
        row, encoder.embed_regions(three, [BLUE_BOX])[0], atol=1e-6
    )  # in the log: float32
    blue = encoder.embed_regions(three, [BLUE_BOX])[0]
    assert {hit.key for hit in index.search(blue, 2)} == {f"{path}#64,48,80,64" for path in paths}


def test_the_best_proposals_become_items(detector: Model, paths: list[str], tmp_path: Path) -> None:
    """Objectness is a cell's brightest channel: of 8 x 8 cells the coloured ones come first."""
    for path, cells in zip(paths, ({(0, 0): RED, (3, 4): BLUE}, {(1, 1): GREEN, (3, 4): BLUE}), strict=True):
        Image.fromarray(scene(cells, 64, 64, cell=8)).save(path)
    index = Index.create(tmp_path / "proposed.index", detector)
    assert fill(index, detector, paths, proposals=2) == [2, 2]
    seen = detector.propose(paths[1])
    assert seen.objectness is not None
    order = np.argsort(-seen.objectness, kind="stable")[:2]
    wanted = {region_key(paths[1], seen.boxes[i].tolist()): seen.embeddings[i] for i in order}
    assert {key for key in index.keys() if key.startswith(paths[1])} == wanted.keys()  # noqa: SIM118  (no dict)
    for row, key in zip(index.vectors(list(wanted)), wanted, strict=True):
        np.testing.assert_allclose(row, wanted[key], atol=1e-6)
    green, blue = detector.embed_texts(["green", "blue"])
    assert index.search(green, 1)[0].record["objectness"] == pytest.approx(1, abs=0.02)
    assert {hit.record["path"] for hit in index.search(blue, 2)} == set(paths)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "expected either boxes or a number of proposals"),
        ({"boxes": [[], []], "proposals": 3}, "expected either boxes or a number of proposals"),
        ({"proposals": 0}, "proposals: expected 1 or more, got 0"),
        ({"boxes": [[]]}, "boxes: expected one list for each of 2 pictures, got 1"),
    ],
)
def test_refused_in_one_line(encoder: Model, paths: list[str], asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(regions_of(encoder, paths, **asked))


def test_a_detector_without_objectness_proposes_none(tmp_path: Path, paths: list[str]) -> None:
    with edgeclip.load(make_detector(tmp_path / "b"), threads=1) as model:
        with pytest.raises(InputError, match=r"no objectness.*Pass boxes"):
            list(regions_of(model, paths, proposals=3))
        boxed = list(regions_of(model, [*paths, "none.png"], boxes=[[RED_BOX], [], [RED_BOX]]))
    assert [len(each[0]) for each in boxed[:2] if not isinstance(each, InputError)] == [1, 0]
    assert isinstance(boxed[2], InputError)


def hits_of(*paths: str) -> list[Hit]:
    return [Hit(f"{path}#{i}", 1 - i / 100, i, {"box": [0, 0, 1, 1]}) for i, path in enumerate(paths)]


def test_grouping_asks_for_more_until_it_has_enough() -> None:
    """Fifty regions of one picture come before the first of another."""
    every, asked = hits_of(*["a"] * 50, "b", "c", "b", "d"), []

    def search(k: int) -> list[Hit]:
        asked.append(k)
        return every[:k]

    assert [hit.key for hit in best_of_each(search, 3, len(every))] == ["a#0", "b#50", "c#51"]
    assert asked == [12, 48, 54]
    assert [hit.key for hit in best_of_each(search, 9, len(every))] == ["a#0", "b#50", "c#51", "d#53"]
    assert best_of_each(lambda k: [], 3, 0) == []
    assert [hit.key for hit in best_of_each(lambda k: [Hit("x", 1, 0, {})], 3, 9)] == ["x"]
    lazy = broken(best_of_each, "asked >= total", "asked >= k")
    assert len(lazy(search, 3, len(every))) < 3  # the fault is seen


def test_keys_tell_boxes_apart() -> None:
    assert region_key("a b.png", [0, 1.234, 12345.67, 99.5]) == "a b.png#0,1.23,12345.67,99.5"
    assert regions.OVERLAP < 1
