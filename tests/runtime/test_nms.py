"""Suppression equals the plain loop and OpenCV's; test_detections.py has supervision's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.runtime.detect import nms as module
from edgeclip.runtime.detect.nms import iou_matrix, nms
from tests.mutants import broken

Case = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def case(seed: int, count: int = 300, labels: int = 3) -> Case:
    """Boxes of which many overlap, with scores of two decimals: many are equal."""
    random = np.random.default_rng(seed)
    low, size = random.uniform(0, 200, (count, 2)), random.uniform(10, 90, (count, 2))
    boxes = np.concatenate([low, low + size], axis=1).astype(np.float32)
    return boxes, random.random(count).round(2).astype(np.float32), random.integers(0, labels, count)


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = sum(float((c[2] - c[0]) * (c[3] - c[1])) for c in (a, b))
    return float(width * height) / (both - float(width * height))


def by_loop(given: Case, iou: float, agnostic: bool) -> list[int]:
    boxes, scores, labels = given
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        rivals = [j for j in kept if agnostic or labels[i] == labels[j]]
        if all(overlap(boxes[i], boxes[j]) <= iou for j in rivals):
            kept.append(i)
    return kept


@cache
def wanted(seed: int, iou: float, agnostic: bool) -> list[int]:
    return by_loop(case(seed), iou, agnostic)


def check(find: Callable[..., NDArray[np.int64]]) -> None:
    for seed, iou, agnostic in ((1, 0.5, False), (2, 0.5, True), (3, 0.2, True), (4, 0.0, False)):
        given, want = case(seed), wanted(seed, iou, agnostic)
        assert 20 < len(want) < 280, "some must go and some must stay"
        assert find(*given, iou, agnostic).tolist() == want
        assert find(*given, iou, agnostic, 15).tolist() == want[:15]


def test_equals_the_plain_loop() -> None:
    check(nms)
    assert nms(*case(1, 64), 0.5, True).tolist() == by_loop(case(1, 64), 0.5, True)  # one whole block


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("nms", "np.argsort(-scores, kind=\"stable\")", "np.argsort(-scores)"),
        ("nms", "np.float32(iou / (1 + iou))", "np.float32(iou)"),
        ("nms", "None if class_agnostic", "None if not class_agnostic"),
        ("nms", "block = block[~_overlap", "_overlap"),
        ("nms", "order[kept[:most]]", "order[kept]"),
        ("_overlap", "np.maximum(width, 0, out=width)", "pass"),
        ("_overlap", "height -= np.maximum(a[1], b[1])", "height -= np.maximum(a[1], b[0])"),
        ("_greedy", "if not dead >> i & 1", "if True"),
    ],
)  # fmt: skip
def test_planted_faults_show(name: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if old.startswith("block = block"):  # kept ones of earlier blocks are forgotten
        old, new = "block = block[~_overlap(sides, share, labels, kept, block).any(axis=0)]", "pass"
    monkeypatch.setattr(module, name, broken(getattr(module, name), old, new))
    with pytest.raises((AssertionError, IndexError)):
        check(module.nms)


def test_equals_opencv() -> None:
    import cv2

    for seed, iou in ((5, 0.5), (6, 0.3)):
        boxes, scores, labels = case(seed)
        scores = (
            np.random.default_rng(seed).permutation(np.linspace(0.1, 0.9, len(scores))).astype(np.float32)
        )
        corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
        want = cv2.dnn.NMSBoxes(corners.tolist(), scores.tolist(), 0.0, iou)
        assert nms(boxes, scores, labels, iou, True).tolist() == np.ravel(want).tolist()
        want = cv2.dnn.NMSBoxesBatched(corners.tolist(), scores.tolist(), labels.tolist(), 0.0, iou)
        assert sorted(nms(boxes, scores, labels, iou).tolist()) == sorted(np.ravel(want).tolist())


def test_edges() -> None:
    boxes, scores, labels = case(8, 10)
    empty = boxes[:0], scores[:0], labels[:0]
    assert nms(*empty, 0.5).tolist() == nms(*empty, 0.5, True, 3).tolist() == []
    twice = np.tile(boxes[:1], (3, 1))
    assert nms(twice, np.array([0.5, 0.9, 0.9], np.float32), labels[:3] * 0, 0.5).tolist() == [1]
    assert nms(twice, np.array([0.5, 0.9, 0.9], np.float32), labels[:3] * 0, 1.0).tolist() == [1, 2, 0]
    flat = np.array([[5, 5, 5, 9], [5, 5, 5, 9]], np.float32)  # without area nothing overlaps
    assert nms(flat, np.ones(2, np.float32), np.zeros(2, np.int64), 0.5).tolist() == [0, 1]
    np.testing.assert_allclose(
        iou_matrix(boxes, boxes), [[overlap(a, b) for b in boxes] for a in boxes], rtol=1e-5
    )
    assert iou_matrix(flat, flat).tolist() == [[0, 0], [0, 0]]
