"""Figures of two detectors: values worked by hand, the agreement against supervision, and what cannot be measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.bundle import Detection
from edgeclip.errors import CheckFailed
from edgeclip.runtime import detection_fidelity
from edgeclip.runtime.detection_fidelity import (
    Seen,
    box_iou,
    check_seen,
    logit_shares,
    measure_detection,
    measure_head,
    measure_regions,
    to_scores,
)
from tests.mutants import broken

Array = NDArray[Any]
EYE = np.eye(3, dtype=np.float32)
DETECTION = Detection(threshold=0.5, nms_iou=0.5)


def boxes(*rows: tuple[float, float, float, float]) -> Array:
    return np.array(rows, np.float32)[None]


def seen(**changes: Any) -> Seen:
    """One picture, three regions apart, each certain of a label of its own: logits 4 on the diagonal, -1 beside it."""
    apart = boxes((0.0, 0.0, 0.2, 0.2), (0.4, 0.4, 0.6, 0.8), (0.7, 0.7, 1.0, 1.0))
    values = {
        "boxes": apart,
        "embeddings": EYE[None],
        "scales": np.full((1, 3), 5.0),
        "biases": np.full((1, 3), -1.0),
    }
    return Seen(**{**values, **changes})


def scenes(pictures: int = 3, regions: int = 40, seed: int = 0) -> Seen:
    """Boxes that overlap, scores on both sides of the threshold."""
    random = np.random.default_rng(seed)
    centre, half = (
        random.uniform(0.2, 0.8, (pictures, regions, 2)),
        random.uniform(0.03, 0.2, (pictures, regions, 2)),
    )
    rows = random.normal(size=(pictures, regions, 8))
    return Seen(
        np.concatenate([centre - half, centre + half], axis=2),
        rows / np.linalg.norm(rows, axis=2, keepdims=True),
        random.uniform(4, 9, (pictures, regions)),
        random.uniform(-2, 0, (pictures, regions)),
        random.uniform(0.3, 1, (pictures, regions)),
    )


def test_differences_by_hand() -> None:
    a = seen()
    moved = a.boxes.copy()
    moved[0, 1, 3] += 0.012
    b = replace(a, boxes=moved, biases=np.array([[-1.0, -1.0, -2.0]]))
    found = measure_detection(a, b, EYE, DETECTION)
    assert (found.regions, found.labels) == (3, 3)
    assert found.box_max == pytest.approx(0.012, rel=1e-5)
    assert found.box_mean == pytest.approx(0.012 / 12, rel=1e-5)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    off, rest = sigmoid(4) - sigmoid(3), sigmoid(-1) - sigmoid(-2)
    assert found.score_max == pytest.approx(rest)
    assert found.score_mean == pytest.approx((off + 2 * rest) / 9)
    assert found.agreement == 1.0  # 0.0024 of 0.08 more: an IoU of 0.97


def test_agreement_is_f1_of_what_is_found() -> None:
    a = seen()
    assert measure_detection(a, a, EYE, DETECTION).agreement == 1.0
    moved = a.boxes.copy()
    moved[0, 0] += 0.02  # IoU of (0.18 / 0.2)^2 over what both cover: 0.68
    assert measure_detection(a, replace(a, boxes=moved), EYE, DETECTION).agreement == pytest.approx(2 / 3)
    lost = replace(a, biases=np.array([[-1.0, -1.0, -9.0]]))  # two of three found: 2 x 2 / (3 + 2)
    assert measure_detection(a, lost, EYE, DETECTION).agreement == pytest.approx(0.8)
    other = replace(a, embeddings=EYE[None, [1, 0, 2]])  # the same boxes, two labels changed
    assert measure_detection(a, other, EYE, DETECTION).agreement == pytest.approx(1 / 3)
    none = replace(a, biases=np.full((1, 3), -9.0))
    assert measure_detection(none, none, EYE, DETECTION).agreement is None
    assert measure_detection(a, none, EYE, DETECTION).agreement == 0.0


def test_objectness_counts_where_the_model_says_so() -> None:
    a = seen(objectness=np.array([[1.0, 1.0, 0.4]]))
    b = replace(a, objectness=np.array([[1.0, 1.0, 0.9]]))
    assert measure_detection(a, b, EYE, DETECTION).score_max == 0
    found = measure_detection(a, b, EYE, replace(DETECTION, objectness=True))
    assert found.score_max == pytest.approx(0.5 / (1 + np.exp(-4)))
    assert found.agreement == pytest.approx(0.8)


@pytest.mark.parametrize("agnostic", [False, True])
def test_what_is_found_is_what_supervision_finds(agnostic: bool) -> None:
    supervision = pytest.importorskip("supervision")
    made, vectors = scenes(), np.eye(8)[:4]
    detection = Detection(threshold=0.6, nms_iou=0.4, class_agnostic=agnostic)
    suppressed = 0
    for i in range(len(made.boxes)):
        scores = to_scores(made.logits(i, vectors), None)
        kept, labels = detection_fidelity._detections(made.boxes[i], scores, detection)
        regions, classes = np.nonzero(scores >= 0.6)
        theirs = supervision.Detections(
            xyxy=made.boxes[i][regions], confidence=scores[regions, classes], class_id=classes
        )
        theirs = theirs.with_nms(threshold=0.4, class_agnostic=agnostic)
        suppressed += len(regions) - len(theirs)
        mine = sorted((*box, label) for box, label in zip(kept.tolist(), labels.tolist(), strict=True))
        assert mine == pytest.approx(
            sorted(
                (*box, label)
                for box, label in zip(theirs.xyxy.tolist(), theirs.class_id.tolist(), strict=True)
            )
        )
    assert suppressed > 3, "nothing overlapped"


def test_overlaps_against_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    a, b = scenes().boxes[0], scenes(seed=1).boxes[0]
    np.testing.assert_allclose(box_iou(a, b), supervision.box_iou_batch(a, b), atol=1e-6)
    assert box_iou(np.array([[0.5, 0.5, 0.5, 0.5]]), np.array([[0.5, 0.5, 0.5, 0.5]])).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ("_matches", "labels_a[:, None] == labels_b", "labels_a[:, None] >= 0"),
        ("_matches", "overlap[:, best] = 0", "pass"),
        ("_matches", ">= SAME_BOX", ">= 0.5"),
        ("_detections", "scores >= detection.threshold", "scores >= 0"),
        ("to_scores", "objectness[:, None]", "1"),
        ("measure_scored", "2 * same / found", "same / found"),
    ],
)  # fmt: skip
def test_faults_are_seen(monkeypatch: pytest.MonkeyPatch, function: str, old: str, new: str) -> None:
    def figures() -> list[Any]:
        a = seen(objectness=np.array([[1.0, 1.0, 0.4]]))
        twice = replace(a, boxes=a.boxes[:, [0, 0, 2]], embeddings=EYE[None, [0, 1, 2]])
        moved = a.boxes.copy()
        moved[0, 0] += 0.02
        pairs = [(a, replace(a, boxes=moved)), (a, replace(a, embeddings=EYE[None, [1, 0, 2]])), (a, twice)]
        detection = replace(DETECTION, objectness=True, nms_iou=1.0)
        found = [detection_fidelity.measure_detection(*pair, EYE, detection) for pair in pairs]
        one = boxes((0.0, 0.0, 0.2, 0.2))[0]
        two, both = np.repeat(one, 2, axis=0), np.array([[0.9], [0.8]])
        doubled = detection_fidelity.measure_scored([((two, both), (two, both * [[1], [0.1]]))], detection)
        return [*found, doubled]

    right = figures()
    monkeypatch.setattr(detection_fidelity, function, broken(getattr(detection_fidelity, function), old, new))
    assert figures() != right


def test_a_head_is_measured_by_shares_of_its_logits() -> None:
    a, vectors = scenes(), np.eye(8)[:4]
    logits = np.stack([a.logits(i, vectors) for i in range(3)])
    found = {"boxes": a.boxes, "logits": logits.astype(np.float32), "objectness": a.objectness}
    same = measure_head(a, found, vectors, replace(DETECTION, objectness=True))
    assert same.max_abs < 1e-6
    assert same.detection is not None
    assert same.detection.agreement == 1.0
    off = {**found, "logits": logits + 0.1 * (1 + np.abs(a.scales) + np.abs(a.biases))[..., None]}
    assert measure_head(a, off, vectors, DETECTION).max_abs == pytest.approx(0.1)
    want, given = logit_shares(a, off["logits"], vectors)
    np.testing.assert_allclose(given - want, 0.1)


def test_regions_are_all_measured_though_pairs_are_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    a, vectors = scenes(), np.eye(8)[:4]
    rows = a.embeddings.copy()
    rows[1, 7] = rows[1, 8]  # one of 120, not among those at steps of 12
    b = replace(a, embeddings=rows)
    monkeypatch.setattr(detection_fidelity, "ROWS", 10)
    found = measure_regions(a, b, vectors, DETECTION)
    assert found.samples == 120
    assert found.max_abs == np.abs(a.embeddings - rows).max()
    assert found.cosine_min == pytest.approx((a.embeddings[1, 7] * rows[1, 8]).sum())
    assert found.relative_distance == 0, "of pairs"
    assert found.detection is not None
    assert found.detection.score_max > 0.01


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"boxes": np.full((2, 3, 4), np.nan)}, "the graph: boxes holds values that are not finite"),
        ({"region_embeddings": np.ones((2, 3, 3))}, "the graph: region embeddings are not of unit length"),
        ({"region_embeddings": np.stack([EYE, EYE])}, "the graph: gives the same region_embeddings for different pictures"),
        ({"boxes": np.zeros((2, 3, 4))}, "the graph: gives the same boxes for every region"),
        ({"logits": np.zeros((2, 3, 4))}, "the graph: gives the same logits for different pictures"),
    ],
    ids=["finite", "length", "pictures", "regions", "logits"],
)  # fmt: skip
def test_what_no_detector_gives_is_refused(changes: dict[str, Array], words: str) -> None:
    arrays = {
        "boxes": np.random.default_rng(0).uniform(size=(2, 3, 4)),
        "region_embeddings": np.stack([EYE, EYE[[1, 2, 0]]]),
    }
    check_seen(arrays, "the graph")
    with pytest.raises(CheckFailed, match=words):
        check_seen({**arrays, **changes}, "the graph")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"want two \(N, Q, 4\) and a label, got \(1, 3, 4\), \(1, 2, 4\), 3"
    ):
        measure_detection(seen(), seen().take(np.array([0, 2])), EYE, DETECTION)
