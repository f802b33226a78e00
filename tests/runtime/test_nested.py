"""Prompts within prompts, and large pictures in tiles."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip import Tiling, load
from edgeclip.errors import InputError
from edgeclip.runtime.detect import nested, search, tiling
from edgeclip.runtime.detect.nms import iou_matrix
from edgeclip.runtime.detect.postprocess import Candidates, Rules
from edgeclip.runtime.detect.prompt_tree import Prompt, parse_prompts
from edgeclip.runtime.detect.tiling import is_cut, merge
from edgeclip.runtime.model import Model
from tests.mutants import broken
from tests.runtime.detectors import make_detector, scene

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The planted detector."""
    with load(make_detector(tmp_path_factory.mktemp("nested") / "b"), threads=1) as opened:
        yield opened


# --- the language


def tree(text: str) -> Any:
    found = parse_prompts(text)

    def told(prompts: tuple[Prompt, ...]) -> Any:
        return {found.labels[p.label]: told(p.within) for p in prompts}

    return told(found.prompts)


def test_prompts_are_read() -> None:
    assert tree("[a face [an eye, a nose], a cup]") == {"a face": {"an eye": {}, "a nose": {}}, "a cup": {}}
    assert tree(" [ a  face[an eye[a pupil] ] ,a cup ] ") == {
        "a  face": {"an eye": {"a pupil": {}}},
        "a cup": {},
    }
    both = parse_prompts("[a cat [an eye], a dog [an eye, a cat]]")
    assert both.labels == ("a cat", "an eye", "a dog"), "a label stands once, wherever it is looked for"
    assert both.prompts[1].within == (Prompt(1), Prompt(0))
    assert both.nested
    assert both.columns is not None
    assert both.columns.tolist() == [0, 2]
    assert not parse_prompts("[a cat]").nested
    assert parse_prompts("[a cat, a dog]").columns is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a face", "column 8: expected , or ], got the end"),
        ("[a face [an eye]", "column 17: expected , or ], got the end"),
        ("[a face]]", "column 9: expected the end, got ']'"),
        ("[a face] a cup", "column 10: expected the end, got 'a cup'"),
        ("[]", "column 2: expected a label, got ']'"),
        ("[a, , b]", "column 5: expected a label, got ','"),
        ("[a, [b]]", r"column 5: expected a label, got '\['"),
        ("[a [b] c]", "column 8: expected , or ], got 'c'"),
        ("[a, b, a]", "column 8: expected each label once in a list, 'a' came before, got 'a'"),
        ("[a [b [c [d [e]]]]]", r"column 13: expected at most 4 brackets within each other, got '\['"),
        ("a [b]", r"column 1: expected \[, got 'a'"),
    ],
)
def test_wrong_prompts_are_told_with_their_column(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"prompts, {message}") as caught:
        parse_prompts(text)
    assert "\n" not in str(caught.value)


# --- looking within


def face() -> Any:
    """512 x 512: a red face of 128 pixels (four cells) with a blue eye in it, one beside it, and one that is in no face.

    The cell at row 2, column 3 makes a box from (176, 112) to (272, 208), whose crop reaches to 282, beyond the eye beside it.
    """
    picture = np.zeros((512, 512, 3), np.uint8)
    picture[128:256, 128:256] = RED
    picture[158:178, 236:256] = BLUE
    picture[140:156, 268:284] = BLUE
    picture[400:416, 400:416] = BLUE
    return picture


def check_within(model: Model) -> None:
    found = model.detect(face(), "[red [blue], green]", threshold=0.3)
    assert found.parents is not None
    eyes, faces = found.label_indices == 1, found.label_indices == 0
    assert found.labels == ("red", "blue", "green")
    assert faces.sum() >= 2, "the planted detector finds a face in each of the four cells"
    assert eyes.any()
    assert (found.parents[faces] == -1).all()
    assert (found.parents[eyes] >= 0).all()
    assert (found.label_indices[found.parents[eyes]] == 0).all()
    inside = found.boxes[found.parents[eyes]]
    centres = (found.boxes[eyes, :2] + found.boxes[eyes, 2:]) / 2
    assert ((centres >= inside[:, :2]) & (centres <= inside[:, 2:])).all()
    assert (np.diff(found.scores) <= 0).all(), "best first"
    assert np.abs(centres - (246, 168)).max() < 16, "in the pixels of the whole picture"
    assert found.scores[eyes].max() > found.scores[faces].max()


def test_children_are_found_in_their_parents(model: Model) -> None:
    check_within(model)
    assert "blue" not in model.detect(face(), ["red", "blue"], threshold=0.3).names, (
        "it is too small to be seen in the whole picture"
    )
    flat = model.detect(face(), "[red, green]", threshold=0.3)
    assert (flat.parents, flat.names) == (None, model.detect(face(), ["red", "green"], threshold=0.3).names)


@pytest.mark.parametrize(
    ("module", "name", "old", "new"),
    [
        (nested, "_of_parent", "seen.boxes + np.tile(crop[:2], 2)", "seen.boxes"),
        (nested, "_of_parent", "(centre <= parent[2:])", "(centre <= 1e9)"),
        (nested, "search_within", "np.full(len(inner), row)", "np.full(len(inner), -1)"),
        (nested, "search_within", "every[np.argsort(-every.scores, kind=\"stable\")]", "every"),
    ],
)  # fmt: skip
def test_planted_faults_show(
    module: Any, name: str, old: str, new: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = broken(getattr(module, name), old, new)
    monkeypatch.setattr(module, name, mutant)
    if name == "search_within":
        monkeypatch.setattr(search, name, mutant)
    with pytest.raises(AssertionError):
        check_within(model)


def test_three_levels_and_the_most_crops(
    model: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.zeros((1024, 1024, 3), np.uint8)
    picture[128:256, 128:256] = RED
    picture[160:208, 160:208] = BLUE
    picture[176:188, 176:188] = GREEN
    found = model.detect(picture, "[red [blue [green]]]", threshold=0.3, batch_size=4)
    assert set(found.names) == {"red", "blue", "green"}
    assert found.parents is not None
    for i, name in enumerate(found.names):
        parent = found.parents[i]
        assert (found.names[parent] if parent >= 0 else None) == {
            "red": None,
            "blue": "red",
            "green": "blue",
        }[name]
    green = found.boxes[found.label_indices == 2]
    assert iou_matrix(green, np.array([[176, 176, 188, 188]], np.float32)).max() > 0.3
    few = model.detect(picture, "[red [blue [green]]]", threshold=0.3, max_detections=3)
    assert len(few) == 3
    assert few.parents is not None
    assert (few.parents < 3).all()

    monkeypatch.setattr(nested, "MOST_CROPS", 1)
    with caplog.at_level(logging.WARNING, "edgeclip"):
        model.detect(face(), "[red [blue]]", threshold=0.3, nms_iou=0.1)
    assert "detections of 'red' are not looked into: 1 crops are the most for a picture" in caplog.text


def test_nested_prompts_with_every_kind_of_picture(model: Model, tmp_path: Path) -> None:
    want = model.detect(face(), "[red [blue]]", threshold=0.3).to_dict()
    Image.fromarray(face()).save(tmp_path / "face.png")
    stream = io.BytesIO()
    Image.fromarray(face()).save(stream, "PNG")
    for picture in (tmp_path / "face.png", stream.getvalue(), Image.fromarray(face())):
        assert model.detect(picture, "[red [blue]]", threshold=0.3).to_dict() == want  # type: ignore[call-overload]
    bgr = np.ascontiguousarray(face()[..., ::-1])
    assert model.detect(bgr, "[red [blue]]", threshold=0.3, color="bgr").to_dict() == want
    each = list(model.detect_each([b"", face()], "[red [blue]]", threshold=0.3))
    assert isinstance(each[0], InputError)
    assert each[1].to_dict() == want  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"images\[1\]: the file is empty"):
        model.detect([face(), b""], "[red [blue]]")


# --- tiles


def test_tiles_cover_the_picture_and_overlap() -> None:
    for size, side, overlap in (
        ((1000, 1700), 640, 0.2),
        ((641, 640), 640, 0.0),
        ((97, 33), 10, 0.5),
        ((5, 5), 10, 0.2),
    ):
        tiles = Tiling(side, overlap).tiles(size)
        seen = np.zeros(size, int)
        for x0, y0, x1, y1 in tiles:
            assert (x1 - x0, y1 - y0) == (min(side, size[1]), min(side, size[0]))
            seen[y0:y1, x0:x1] += 1
        assert seen.min() == 1
        columns = np.unique(tiles[:, 0])
        assert (columns[:-1] + side - columns[1:] >= overlap * side - 1).all()
    assert Tiling(640).tiles((640, 640)).tolist() == [[0, 0, 640, 640]]
    assert len(Tiling(640, 0.2).tiles((1000, 1700))) == 2 * 4
    for arguments in ((0,), (640, 1.0), (640, -0.1)):
        with pytest.raises(
            InputError, match=r"tile: expected a size of 1 pixel or more and an overlap of 0 to 0\.9"
        ):
            Tiling(*arguments)
    with pytest.raises(InputError, match=r"tile: expected at most 1024 tiles, got .* for 4000 x 3000 pixels"):
        Tiling(32).tiles((3000, 4000))


def small() -> Any:
    """256 x 192 pixels with two objects of 8 pixels, one of them at a seam of tiles of 64 without overlap."""
    picture = np.zeros((192, 256, 3), np.uint8)
    picture[88:96, 72:80] = RED
    picture[40:48, 56:64] = GREEN
    return picture


def test_tiles_find_what_is_too_small_for_the_whole(model: Model) -> None:
    assert len(model.detect(small(), ["red", "green"], threshold=0.6)) == 0
    for tile in (Tiling(64, 0.0), Tiling(64, 0.5), Tiling(64, 0.5, whole=False)):
        found = model.detect(small(), ["red", "green"], threshold=0.6, tile=tile, nms_iou=0.3, batch_size=5)
        best = found[[found.names.index("red"), found.names.index("green")]]
        overlap = iou_matrix(best.boxes, np.array([[70, 86, 82, 98], [54, 38, 66, 50]], np.float32))
        assert overlap.diagonal().min() > 0.6
        assert found.size == (192, 256)
    nested_in_tiles = model.detect(small(), "[red [red]]", threshold=0.6, tile=Tiling(64, 0.5))
    assert set(nested_in_tiles.names) == {"red"}
    assert nested_in_tiles.parents is not None
    assert (nested_in_tiles.parents >= 0).any()


def test_a_picture_of_one_tile_is_detected_as_without(model: Model) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.kron(scene({(2, 3): RED, (5, 1): GREEN}), np.ones((8, 8, 1), np.uint8))).save(
        stream, "JPEG"
    )
    for picture in (scene({(2, 3): RED}), stream.getvalue()):
        want = model.detect(picture, ["red", "green"])
        found = model.detect(picture, ["red", "green"], tile=Tiling(512))
        assert found.to_dict() == want.to_dict()
        np.testing.assert_array_equal(found.boxes, want.boxes)
    with pytest.raises(InputError, match=r"images\[0\]: the file is empty"):
        model.detect(b"", ["red"], tile=Tiling(512))


RULES = Rules(np.zeros(2, np.float32), 0.5, False, 10, False)


def check_merge() -> None:
    """A box of 60 pixels across a seam at 100: whole in one tile, cut in the other, with a better score."""
    whole = np.array([[70, 10, 130, 40]], np.float32)
    cut = np.array([[70, 10, 100, 40], [0, 0, 30, 30]], np.float32)
    one = Candidates(cut, np.array([0.95, 0.5], np.float32), np.array([0, 0]))
    other = Candidates(whole, np.array([0.9], np.float32), np.array([0]))
    first, second = np.array([0, 0, 100, 100]), np.array([60, 0, 160, 100])
    size = (100, 160)
    assert is_cut(cut, first, size).tolist() == [True, False], "the picture's own edge cuts nothing"
    assert is_cut(whole - [60, 0, 60, 0], second, size).tolist() == [False]
    parts = [(one, np.array([True, False])), (other, np.array([False]))]
    found = tiling.merge(parts, ("a", "b"), size, RULES)
    assert found.boxes.tolist() == [whole[0].tolist(), [0, 0, 30, 30]]
    # of another label it stays, unless boxes suppress across labels
    parts[1] = (replace(other, labels=np.array([1])), np.array([False]))
    assert len(tiling.merge(parts, ("a", "b"), size, RULES)) == 3
    assert len(tiling.merge(parts, ("a", "b"), size, replace(RULES, class_agnostic=True))) == 2
    # and alone it is better than nothing
    assert len(tiling.merge(parts[:1], ("a", "b"), size, RULES)) == 2
    assert len(tiling.merge(parts[:1], ("a", "b"), size, replace(RULES, max_detections=1))) == 1


def test_cut_boxes_lose_to_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    check_merge()
    for old, new in (
        ("scores.astype(np.float64) + ~cut", "scores"),
        ("whole, pieces[~covered.any(axis=1)]", "whole, pieces"),
        ("covered &= labels[pieces, None] == labels[whole]", "pass"),
    ):
        monkeypatch.setattr(tiling, "merge", broken(merge, old, new))
        if old.startswith("scores"):  # a cut box that overlaps enough to suppress
            continue
        with pytest.raises(AssertionError):
            check_merge()


def test_a_cut_box_never_suppresses_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = np.array([[0, 0, 90, 30]], np.float32), np.array([[0, 0, 100, 30]], np.float32)
    parts = [
        (Candidates(box, np.array([score], np.float32), np.array([0])), np.array([cut]))
        for box, score, cut in zip(boxes, (0.99, 0.2), (True, False), strict=True)
    ]

    def check() -> None:
        assert tiling.merge(parts, ("a",), (100, 100), RULES).boxes.tolist() == boxes[1].tolist()

    check()
    monkeypatch.setattr(tiling, "merge", broken(merge, "scores.astype(np.float64) + ~cut", "scores"))
    with pytest.raises(AssertionError):
        check()


def test_one_large_thing_in_every_tile_does_not_hide_a_small_one() -> None:
    def part(boxes: list[list[float]], score: float) -> tuple[Candidates, np.ndarray]:
        scores, labels = np.full(len(boxes), score, np.float32), np.zeros(len(boxes), np.int64)
        return Candidates(np.array(boxes, np.float32), scores, labels), np.zeros(len(boxes), bool)

    parts = [part([[20, 20, 90, 90]] * 1000, 0.9)] * 4 + [part([[0, 0, 9, 9]], 0.5)]
    assert merge(parts, ("a",), (100, 100), RULES).boxes.tolist() == [[20, 20, 90, 90], [0, 0, 9, 9]]
