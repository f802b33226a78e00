"""From what a detector gives to detections: thresholds, candidates, suppression, borders; beside a plain loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeclip import load
from edgeclip.bundle import Bundle
from edgeclip.errors import InputError
from edgeclip.runtime.detect import postprocess
from edgeclip.runtime.detect.nms import iou_matrix
from edgeclip.runtime.detect.postprocess import MOST_CANDIDATES, Rules, choose, settle, within
from edgeclip.runtime.detect.proposals import Proposals
from edgeclip.runtime.labels import LabelPack
from tests.mutants import broken
from tests.runtime.detectors import (
    MODEL_ID,
    make_detector,
    scene,
)

HEADS = ("embeddings", "prompts", "labels")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_detector(tmp_path_factory.mktemp("plain") / "b", heads=HEADS, objectness=True)


def random_case(seed: int, regions: int = 60, labels: int = 5) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    low = random.uniform(0, 80, (regions, 2))
    boxes = np.concatenate([low, low + random.uniform(4, 20, (regions, 2))], axis=1).astype(np.float32)
    logits = random.normal(-1, 2, (regions, labels)).astype(np.float32)
    return logits, boxes, random.random(regions).astype(np.float32)


@pytest.mark.parametrize("multiply", [False, True])
def test_equals_the_plain_loop(multiply: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, boxes, objectness = random_case(1)
    thresholds = np.array([0.1, 0.3, 0.5, 0.05, 1.0], np.float32)
    rules = Rules(thresholds, 0.4, False, 300, multiply)
    names, overlap = tuple("abcde"), iou_matrix(boxes, boxes)

    def check() -> None:
        scores = 1 / (1 + np.exp(-logits.astype(np.float64))) * (objectness[:, None] if multiply else 1)
        pairs = [(-scores[q, p], q, p) for q in range(60) for p in range(5) if scores[q, p] >= thresholds[p]]
        kept: list[tuple[int, int]] = []
        for _, q, p in sorted(pairs):
            if all(p != other or overlap[q, o] <= 0.4 for o, other in kept):
                kept.append((q, p))
        assert 10 < len(kept) < len(pairs)
        found = settle(postprocess.choose(logits, boxes, objectness, rules), names, (100, 100), rules)
        assert found.label_indices.tolist() == [p for _, p in kept]
        np.testing.assert_array_equal(found.boxes, boxes[[q for q, _ in kept]])
        np.testing.assert_allclose(found.scores, [scores[pair] for pair in kept], atol=1e-6)

    check()
    faults = [("np.divmod(chosen, logits.shape[1])", "np.divmod(chosen, len(logits))")]
    faults += (
        [("_sigmoid(logits) * objectness[:, None]", "_sigmoid(logits)")]
        if multiply
        else [("_logit(rules.thresholds)", "rules.thresholds")]
    )
    for old, new in faults:
        monkeypatch.setattr(postprocess, "choose", broken(choose, old, new))
        with pytest.raises((AssertionError, IndexError)):
            check()


@pytest.mark.parametrize("multiply", [False, True])
def test_of_too_many_candidates_the_best_go_on(multiply: bool) -> None:
    logits, boxes, objectness = random_case(2, 800, 4)
    rules = Rules(np.zeros(4, np.float32), 1.0, False, 300, multiply)
    assert rules.candidates == MOST_CANDIDATES == 1000
    assert replace(rules, max_detections=500).candidates == 1500
    found = choose(logits, boxes, objectness, rules)
    assert len(found.scores) == 1000
    scores = 1 / (1 + np.exp(-logits.astype(np.float64))) * (objectness[:, None] if multiply else 1)
    np.testing.assert_allclose(np.sort(found.scores), np.sort(scores.ravel())[-1000:], atol=1e-6)
    # saturated logits: of equal ones the first
    found = choose(np.full((800, 4), 50, np.float32), boxes, np.ones(800, np.float32), rules)
    assert found.labels.tolist() == [0, 1, 2, 3] * 250


def test_a_thousand_regions_on_one_thing_do_not_hide_another(plain: Bundle) -> None:
    boxes = np.tile(np.array([[10, 10, 90, 90]], np.float32), (9001, 1))
    boxes[-1] = [0, 0, 5, 5]
    seen = Proposals(
        boxes=boxes,
        embeddings=np.tile(np.array([[1, 0, 0, 0]], np.float32), (9001, 1)),
        logit_scales=np.append(np.full(9000, 4.0), 1.0).astype(np.float32),
        logit_biases=np.zeros(9001, np.float32),
        objectness=None,
        size=(100, 100),
        model_id=MODEL_ID,
    )
    with load(plain, threads=1) as model:
        found = model.detect_in(seen, ["red"], threshold=0.5)
    assert found.boxes.tolist() == [[10, 10, 90, 90], [0, 0, 5, 5]]


def test_what_is_no_number_is_not_found() -> None:
    logits, boxes, objectness = random_case(3)
    rules = Rules(np.full(5, 0.1, np.float32), 0.5, False, 300, False)
    logits[:10], boxes[10:20] = np.nan, np.nan
    inside, rows = within(boxes, (100, 100))
    assert rows.tolist() == [*range(10), *range(20, 60)]
    found = choose(logits[rows], inside, objectness[rows], rules)
    assert np.isfinite(found.scores).all()
    assert np.isfinite(found.boxes).all()
    assert len(found.scores) > 0
    masked = np.full((60, 5), -1e4, np.float32)
    for every in (False, True):
        none = choose(masked, boxes, objectness, replace(rules, objectness=every))
        assert len(none.scores) == 0


def test_boxes_end_where_the_picture_does() -> None:
    boxes = np.array(
        [[-5, -5, 20, 20], [90, 40, 130, 70], [10, 45, 30, 80], [5, 5, 5, 9], [-9, 0, 5, 5]], np.float32
    )
    cut, rows = within(boxes, (60, 100))
    assert rows.tolist() == [0], "centres beyond the border, and boxes without area, are left out"
    assert cut.tolist() == [[0, 0, 20, 20]]


def test_label_packs_of_other_sizes(plain: Bundle) -> None:
    with load(plain, threads=1) as model, pytest.raises(InputError, match="this label pack was made by"):
        model.detect(scene({}), LabelPack(("x",), ("{}",), np.eye(8, dtype=np.float32)[:1], "d" * 64))
