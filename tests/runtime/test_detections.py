"""Detections: rows chosen, and the forms that others read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgeclip import Detections
from edgeclip.errors import InputError
from edgeclip.runtime import conversions
from edgeclip.runtime.detect.nms import nms
from tests.mutants import broken
from tests.runtime.test_nms import case

FOUND = Detections(
    boxes=np.array([[1.5, 2, 11, 22.25], [0, 0, 40, 30], [3, 4, 9, 8], [4, 5, 6, 7]], np.float32),
    scores=np.array([0.9, 0.75, 0.5, 0.125], np.float32),
    label_indices=np.array([1, 0, 2, 2]),
    labels=("a cup", "a face", "an eye"),
    size=(30, 40),
    parents=np.array([-1, -1, 0, 1]),
    track_ids=np.array([7, -1, 3, 4]),
    extra={"area": np.array([1.0, 2.0, 3.0, 4.0])},
)
FIELDS = ("boxes", "scores", "label_indices", "parents", "track_ids")


def assert_same(
    found: Detections, want: Detections, fields: tuple[str, ...] = FIELDS, atol: float = 0
) -> None:
    assert (found.labels, found.size) == (want.labels, want.size)
    for name in fields:
        a, b = getattr(found, name), getattr(want, name)
        assert (a is None) == (b is None), name
        if b is not None:
            assert a.dtype == b.dtype, name
            np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


def test_rows_are_chosen_with_everything_that_belongs_to_them() -> None:
    some = FOUND.filter([True, False, True, True])
    assert some.names == ["a face", "an eye", "an eye"]
    assert some.parents is not None
    assert some.parents.tolist() == [-1, 0, -1], "one parent moved up, one is gone"
    assert (some.track_ids.tolist(), some.extra["area"].tolist()) == ([7, 3, 4], [1, 3, 4])  # type: ignore[union-attr]
    assert_same(FOUND[[0, 2, 3]], some)
    assert_same(FOUND[:2], FOUND.above(0.75))
    assert len(FOUND.above(1)) == len(FOUND[[]]) == 0
    with pytest.raises(InputError, match=r"mask: expected \(4,\) bool, got \(3,\) bool"):
        FOUND.filter([True, False, True])
    with pytest.raises(InputError, match=r"mask: expected \(4,\) bool, got \(4,\) int64"):
        FOUND.filter(np.ones(4, np.int64))  # type: ignore[arg-type]


def test_crops_are_whole_pixels_outwards() -> None:
    picture = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
    crops = FOUND.crop(picture)
    np.testing.assert_array_equal(crops[0], picture[2:23, 1:11])
    assert crops[1].shape == picture.shape
    with pytest.raises(InputError, match=r"picture: expected one of \(30, 40\) \(H, W\), got \(40, 30\)"):
        FOUND.crop(picture.transpose(1, 0, 2))


def test_json() -> None:
    rows = json.loads(json.dumps(FOUND.to_dict()))["detections"]
    assert rows[2] == {
        "label": "an eye", "label_index": 2, "score": 0.5, "box": [3, 4, 9, 8], "parent": 0, "track_id": 3,
    }  # fmt: skip


def test_supervision_and_back() -> None:
    import supervision

    found = FOUND.to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found.data["class_name"].tolist() == FOUND.names
    assert found.area.tolist() == [9.5 * 20.25, 1200, 24, 4]
    assert_same(Detections.from_supervision(found), FOUND)
    assert Detections.from_supervision(found).extra.keys() == {"area"}
    assert_same(
        Detections.from_supervision(found[found.confidence > 0.2]),
        replace(FOUND[:3], parents=np.array([-1, -1, 0])),
    )
    assert_same(
        Detections.from_supervision(found[np.array([3, 2])]),
        FOUND[[3, 2]],
    )
    doubled = supervision.Detections.merge([found, found])
    assert Detections.from_supervision(doubled).parents.tolist() == [-1] * 8  # type: ignore[union-attr]
    none = FOUND[[]]
    assert_same(Detections.from_supervision(none.to_supervision()), none)
    plain = replace(FOUND, parents=None, track_ids=None, extra={})
    assert_same(Detections.from_supervision(plain.to_supervision()), plain)

    foreign = supervision.Detections(xyxy=FOUND.boxes, class_id=np.array([1, 0, 2, 2]))
    with pytest.raises(InputError, match=r"size: expected \(H, W\)"):
        Detections.from_supervision(foreign)
    with pytest.raises(InputError, match="labels: these detections hold neither"):
        Detections.from_supervision(foreign, size=(30, 40))
    with pytest.raises(InputError, match="class_id: expected 0 to 1 for 2 labels, got 0 to 2"):
        Detections.from_supervision(foreign, labels=["a", "b"], size=(30, 40))
    read = Detections.from_supervision(foreign, labels=FOUND.labels, size=(30, 40))
    assert (read.names, read.scores.tolist()) == (FOUND.names, [1, 1, 1, 1])
    foreign.data["class_name"] = np.array(["x", "b", "b", "a"])
    assert Detections.from_supervision(foreign, size=(30, 40)).names == ["x", "b", "b", "a"]


def test_suppression_equals_supervisions() -> None:
    from supervision.detection.utils.iou_and_nms import box_non_max_suppression

    boxes, scores, labels = case(7)
    scores = np.random.default_rng(7).permutation(np.linspace(0.1, 0.9, len(scores))).astype(np.float32)
    for agnostic in (False, True):
        columns = [boxes, scores[:, None]] if agnostic else [boxes, scores[:, None], labels[:, None]]
        want = np.flatnonzero(box_non_max_suppression(np.concatenate(columns, axis=1), 0.5))
        assert sorted(nms(boxes, scores, labels, 0.5, agnostic).tolist()) == want.tolist()


def test_coco_and_back() -> None:
    rows = json.loads(json.dumps(FOUND.to_coco(42, {"a cup": 90, "a face": 1, "an eye": 7})))
    assert rows[0] == {
        "image_id": 42, "category_id": 1, "bbox": [1.5, 2, 9.5, 20.25], "score": pytest.approx(0.9),
    }  # fmt: skip
    assert [row["category_id"] for row in FOUND.to_coco("x", [90, 1, 7])] == [1, 90, 7, 7]
    fields = ("boxes", "scores", "label_indices")
    categories = {90: "a cup", 1: "a face", 7: "an eye"}
    assert_same(Detections.from_coco(rows[::-1], categories, (30, 40)), FOUND, fields)
    assert len(Detections.from_coco([], categories, (30, 40))) == 0
    assert Detections.from_coco([{"bbox": [0, 0, 1, 1], "category_id": 7}], categories, (30, 40)).scores == [
        1
    ]
    with pytest.raises(InputError, match="category_ids: none for the label 'an eye'"):
        FOUND.to_coco(1, {"a cup": 90, "a face": 1})
    with pytest.raises(InputError, match="category_ids: expected 3, one for each label, got 2"):
        FOUND.to_coco(1, [1, 2])
    for wrong in (
        {"bbox": [0, 0, 1], "category_id": 7},
        {"bbox": [0, 0, 1, 1], "category_id": [7]},
        {"bbox": [0, 0, 1, 1], "category_id": 8},
        {},
    ):
        with pytest.raises(InputError, match=r"rows\[0\]: expected a bbox \[x, y, w, h\] and a category_id"):
            Detections.from_coco([wrong], categories, (30, 40))


def test_coco_is_what_pycocotools_reads(capsys: pytest.CaptureFixture[str]) -> None:
    """The same boxes as ground truth and result: a perfect score, by code that is not ours."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    rows = FOUND.to_coco(1, [1, 2, 3])
    truth.dataset = {
        "info": {}, "images": [{"id": 1, "height": 30, "width": 40}],
        "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)],
        "annotations": [{**row, "id": i + 1, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0} for i, row in enumerate(rows)],
    }  # fmt: skip
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(rows), "bbox")
    evaluator.evaluate(), evaluator.accumulate(), evaluator.summarize()
    capsys.readouterr()
    assert evaluator.stats[0] == pytest.approx(1)


def test_yolo_and_back() -> None:
    text = FOUND.to_yolo(scores=True)
    assert text.splitlines()[1] == "0 0.500000 0.500000 1.000000 1.000000 0.750000"
    fields = ("boxes", "scores", "label_indices")
    read = Detections.from_yolo("\n" + text, FOUND.labels, (30, 40))
    assert_same(read, FOUND, fields, atol=1e-4)
    bare = Detections.from_yolo(FOUND.to_yolo(), FOUND.labels, (30, 40))
    assert bare.scores.tolist() == [1] * 4
    assert bare.names == FOUND.names
    assert FOUND[[]].to_yolo() == ""
    for line in (
        "0 0.5 0.5 1",
        "3 0.5 0.5 1 1",
        "0 a b c d",
        "0.5 0.5 0.5 1 1",
        "0 nan 0.5 1 1",
        "-1 0.5 0.5 1 1",
    ):
        with pytest.raises(
            InputError, match=r"line 2: expected 'label cx cy w h\[ score\]' with a label of 0 to 2"
        ):
            Detections.from_yolo("0 0.5 0.5 1 1\n" + line, FOUND.labels, (30, 40))


@pytest.mark.parametrize(
    ("name", "old", "new", "test"),
    [
        ("to_coco", "found.boxes[:, 2:] - found.boxes[:, :2]", "found.boxes[:, 2:]", test_coco_and_back),
        ("from_coco", "x + w, y + h", "w, h", test_coco_and_back),
        ("to_yolo", "[found.size[1], found.size[0]]", "[found.size[0], found.size[1]]", test_yolo_and_back),
        ("from_yolo", "cx + w / 2", "cx + w", test_yolo_and_back),
        ("to_supervision", "tracker_id=found.track_ids", "tracker_id=None", test_supervision_and_back),
        ("from_supervision", '_parents(data["parents"], data.get("rows"))', "None", test_supervision_and_back),
    ],
)  # fmt: skip
def test_planted_faults_show(
    name: str, old: str, new: str, test: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversions, name, broken(getattr(conversions, name), old, new))
    with pytest.raises(AssertionError):
        test()  # type: ignore[operator]
