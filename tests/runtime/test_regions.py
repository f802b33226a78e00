"""Regions of pictures by a planted encoder, whose answers are known by arithmetic, and by a planted detector in its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip import EngineError, InputError, Model
from edgeclip.runtime import regions
from edgeclip.runtime.verify import verify
from tests.mutants import broken
from tests.runtime.detectors import box_of, make_detector, pack_of, scene, score_of, vector_of
from tests.runtime.regions import make_regions

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
# 128 x 64: padded above and below to a square, and halved; cells of 16 pixels on the picture
WIDE = scene({(0, 0): RED, (0, 7): GREEN, (3, 4): BLUE}, 128, 64, cell=16)
BOXES = [(0, 0, 16, 16), (112, 0, 128, 16), (64, 48, 80, 64)]
BLUR = 0.02  # cells bleed into their neighbours where a picture is scaled
TALL = np.ascontiguousarray(WIDE.transpose(1, 0, 2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with edgeclip.load(make_regions(tmp_path_factory.mktemp("regions") / "b"), threads=1) as opened:
        yield opened


def colour(*rgb: int) -> Any:
    row = np.array([*(np.array(rgb) / 255), 0.05])
    return row / np.linalg.norm(row)


def test_boxes_are_embedded_where_they_lie(model: Model) -> None:
    found = model.embed_regions(WIDE, BOXES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [colour(*RED), colour(*GREEN), colour(*BLUE)], atol=BLUR)
    turned = model.embed_regions(TALL, [(y1, x1, y2, x2) for x1, y1, x2, y2 in BOXES])
    np.testing.assert_allclose(turned, found, atol=BLUR)
    # a box of two cells, one of them black; and one that reaches beyond the picture
    half = model.embed_regions(WIDE, [(0, 0, 32, 16), (-50, -50, 16, 16)])
    np.testing.assert_allclose(half[0], colour(127.5, 0, 0), atol=BLUR)
    np.testing.assert_allclose(half[1], colour(*RED), atol=BLUR)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_several_pictures_are_asked_together(model: Model, batch_size: int) -> None:
    """Lists of other lengths, an empty one among them: padding changes no row."""
    pictures, boxes = [WIDE, TALL, WIDE], [BOXES, [], BOXES[2:]]
    found = model.embed_regions(pictures, boxes, batch_size=batch_size)
    assert [rows.shape for rows in found] == [(3, 4), (0, 4), (1, 4)]
    np.testing.assert_array_equal(found[0], model.embed_regions(WIDE, BOXES))
    np.testing.assert_array_equal(found[2], found[0][2:])


def test_more_boxes_than_one_call_takes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    every = model.embed_regions(WIDE, BOXES * 3)
    monkeypatch.setattr(regions, "AT_ONCE", 4)
    np.testing.assert_array_equal(model.embed_regions([WIDE, WIDE], [BOXES * 3, BOXES])[0], every)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("_ask", "part = asked[i][start : start + width]", "part = asked[i][:width]"),
        ("_ask", "tokens[i].rows", "tokens[0].rows"),
        ("placed", "to_input(boxes, self._spec, size)", "to_input(boxes, self._spec, size[::-1])"),
        ("placed", "to_input(boxes, self._spec, size)", "boxes / np.array([*size, *size], np.float32)"),
        ("_ask", "rows[row, :count]", "rows[0, :count]"),
    ],
)
def test_faults_are_seen(
    model: Model, name: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "AT_ONCE", 2)
    want = np.array([colour(*RED), colour(*GREEN), colour(*BLUE)])
    turned = [(y1, x1, y2, x2) for x1, y1, x2, y2 in BOXES]

    def right() -> bool:
        try:
            found = model.embed_regions([WIDE, TALL], [BOXES, turned[::-1]])
        except InputError:
            return False
        return np.allclose(found[0], want, atol=BLUR) and np.allclose(found[1], want[::-1], atol=BLUR)

    assert right()
    function = broken(getattr(regions.Regions, name), old, new)
    monkeypatch.setattr(regions.Regions, name, function)
    assert not right()


def test_boxes_are_classified(model: Model) -> None:
    found = model.classify_regions(WIDE, BOXES, ["red", "green", "blue"], top_k=2)
    assert [each.label for each in found] == ["red", "green", "blue"]
    assert len(found[0].labels) == 2
    cosines = np.array([colour(*RED) @ vector_of(text) for text in ("red", "green", "blue")]) * 10
    assert found[0].score == pytest.approx(np.exp(cosines[0]) / np.exp(cosines).sum(), abs=BLUR)
    by_pack = model.classify_regions([WIDE], [BOXES], pack_of(["red", "blue"]))
    assert [each.label for each in by_pack[0]] == ["red", by_pack[0][1].label, "blue"]
    none = model.classify_regions(WIDE, BOXES[:1], ["green", "blue"], threshold=0.9)
    assert none[0].label is None
    for arguments, reason in (((None,), "none are baked"), ((["red"], None, 0), "top_k")):
        with pytest.raises(InputError, match=reason):
            model.classify_regions(WIDE, BOXES, *arguments)


def test_a_picture_is_encoded_once_and_asked_often(model: Model) -> None:
    tokens = model.tokens_of(WIDE)
    assert (tokens.rows.shape, tokens.size) == ((64, 4), (64, 128))
    by_box = model.ask(tokens, boxes=BOXES)
    assert by_box.boxes is None
    np.testing.assert_array_equal(by_box.embeddings, model.embed_regions(WIDE, BOXES))
    by_point = model.ask(tokens, points=[(5, 5), (120, 9)])
    np.testing.assert_allclose(by_point.embeddings, [colour(*RED), colour(*GREEN)], atol=BLUR)
    by_text = model.ask(tokens, texts=["blue", "red"])
    np.testing.assert_allclose(by_text.boxes, [BOXES[2], BOXES[0]], atol=1e-3)
    np.testing.assert_allclose(by_text.embeddings, [vector_of("blue"), vector_of("red")], atol=1e-5)
    assert len(model.tokens_of([WIDE, TALL])) == 2


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([(0, 0, 5, 5), (9, 3, 9, 8)], r"boxes\[1\]: expected x1 < x2 and y1 < y2, got \(9, 3, 9, 8\)"),
        ([(0, 0, float("nan"), 5)], r"boxes\[0\]: expected \(x1, y1, x2, y2\) in pixels, got \(0, 0, nan, 5\)"),
        ([(200, 0, 210, 9)], r"boxes\[0\]: expected a box in the picture of 128 x 64 pixels, got \(200, 0, 210, 9\)"),
        ([(1, 2, 3)], r"boxes: expected rows of \(x1, y1, x2, y2\) in pixels, got an array of shape \(1, 3\)"),
        ([(1, 2, 3, 4), (5,)], r"boxes: expected rows .* got \[\(1, 2, 3, 4\), \(5,\)\]"),
        ("a box", "boxes: expected rows .* got 'a box'"),
    ],
)  # fmt: skip
def test_bad_boxes_are_refused(model: Model, boxes: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        model.embed_regions(WIDE, boxes)
    (found,) = model.embed_regions_each([WIDE], [boxes])
    assert isinstance(found, InputError)


def test_bad_questions_are_refused(model: Model) -> None:
    tokens = model.tokens_of(WIDE)
    for given in ({}, {"boxes": BOXES, "points": [(1, 1)]}):
        with pytest.raises(InputError, match="ask: expected one of boxes, points and texts"):
            model.ask(tokens, **given)
    with pytest.raises(InputError, match=r"points\[0\]: expected a point in the picture of 128 x 64 pixels"):
        model.ask(tokens, points=[(130, 4)])
    with pytest.raises(InputError, match="tokens: expected those of model dddd"):
        model.ask(edgeclip.Tokens(tokens.rows, tokens.size, "e" * 64), boxes=BOXES)
    with pytest.raises(InputError, match="boxes: expected one list for each of 2 pictures, got 1"):
        model.embed_regions([WIDE, TALL], [BOXES])


def test_a_bad_picture_is_not_fatal(model: Model) -> None:
    found = list(
        model.embed_regions_each(
            [WIDE, "no such.png", TALL, WIDE], [BOXES, BOXES, [(1, 1, 1, 1)], BOXES], batch_size=3
        )
    )
    assert [isinstance(each, InputError) for each in found] == [False, True, True, False]
    assert "boxes[2][0]" in str(found[2])
    named = list(model.classify_regions_each([WIDE, "no such.png"], [BOXES, BOXES], ["red", "green"]))
    assert [type(each).__name__ for each in named] == ["list", "InputError"]


def test_a_box_that_is_cropped_away_is_refused(tmp_path: Path) -> None:
    bundle = make_regions(tmp_path / "b", region_preprocessing=None, grounding=False)
    with edgeclip.load(bundle, threads=1) as cropping:
        np.testing.assert_allclose(cropping.embed_regions(WIDE, BOXES[2:]), [colour(*BLUE)], atol=BLUR)
        with pytest.raises(InputError, match=r"boxes\[0\]: \(0, 0, 16, 16\) lies in the part .* crops away"):
            cropping.embed_regions(WIDE, BOXES)
        with pytest.raises(
            EngineError, match="no grounding tower; it can embed and classify regions and embed texts"
        ):
            cropping.ask(cropping.tokens_of(WIDE), texts=["red"])


def test_a_detector_answers_in_its_place(tmp_path: Path) -> None:
    """By the region that overlaps the box best, and with its own scale and bias."""
    picture = scene({(1, 2): RED, (5, 6): BLUE})
    with edgeclip.load(make_detector(tmp_path / "b"), threads=1) as detector:
        boxes = [box_of(1, 2, 255), box_of(5, 6, 255)]
        np.testing.assert_allclose(
            detector.embed_regions(picture, boxes), [colour(*RED), colour(*BLUE)], atol=1e-5
        )
        found = detector.classify_regions(picture, boxes, ["red", "blue"])
        assert [each.label for each in found] == ["red", "blue"]
        assert found[1].score == pytest.approx(score_of(BLUE, 6, "blue"), abs=1e-5)
        with pytest.raises(EngineError, match="no region encoder; it can detect and embed texts"):
            detector.tokens_of(picture)


def test_a_bundle_without_either_says_what_it_can() -> None:
    with (
        edgeclip.load("nano") as plain,
        pytest.raises(EngineError, match="no region encoder; it can classify and embed pictures"),
    ):
        plain.tokens_of(WIDE)


def test_warmup_opens_what_is_asked_by_boxes(tmp_path: Path) -> None:
    with edgeclip.load(make_regions(tmp_path / "b"), threads=1, precision="fp32") as model:
        model.warmup(text=False)
        assert {"tokens", "regions"} <= set(model.info().towers)


def test_verify_runs_the_graphs_without_golden_rows(tmp_path: Path) -> None:
    report = verify(make_regions(tmp_path / "b"), threads=1)
    details = {check.name: check.detail for check in report.checks}
    assert details["tokens-fp32"] == details["regions-fp32"] == "2 made-up inputs, finite and different"
    assert not next(
        check for check in report.checks if check.name == "grounding-fp32"
    ).passed  # the same for both pictures
