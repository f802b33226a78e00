"""From logits and boxes to detections: threshold, the best candidates, suppression. benchmarks/postprocess.py has the times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeclip.runtime.detect.nms import nms
from edgeclip.runtime.detections import Detections

# What goes into suppression at first: the best ones, which are enough unless a thousand regions lie on one object. More detections than a
# third of it are asked for: three times as many.
MOST_CANDIDATES = 1000
_GROWTH = 8  # times as many are tried where suppression leaves too few
# Ends that: bounds the time where a threshold of 0 lets every region through with every label.
_LAST = 64_000

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Rules:
    """What becomes a detection."""

    thresholds: Floats  # (P,) 0-1, of each label
    nms_iou: float
    class_agnostic: bool
    max_detections: int
    objectness: bool  # scores are multiplied by it

    @property
    def candidates(self) -> int:
        """How many go into suppression at first."""
        return max(MOST_CANDIDATES, 3 * self.max_detections)

    def of(self, columns: NDArray[np.int64]) -> Rules:
        """For these labels only."""
        return replace(self, thresholds=self.thresholds[columns])


@dataclass(frozen=True)
class Candidates:
    """Regions that reached the threshold of a label, in no order."""

    boxes: Floats  # (M, 4) xyxy pixels, cut at the picture's border
    scores: Floats  # (M,) 0-1
    labels: NDArray[np.int64]  # (M,)

    def moved(self, corner: NDArray[np.int64]) -> Candidates:
        """On the picture of which they saw a part that begins at `corner`, (x, y, ...) pixels."""
        return replace(self, boxes=(self.boxes + np.tile(corner[:2], 2)).astype(np.float32))


def within(boxes: Floats, size: tuple[int, int]) -> tuple[Floats, NDArray[np.int64]]:
    """Cut boxes at the picture's border, and leave out what is none of it.

    A box whose centre lies beyond the border was seen in the padding that a picture is filled up with: OWLv2 finds things there.

    Args:
        boxes: (Q, 4) xyxy pixels; NaN is left out.
        size: (H, W).
    Returns:
        (K, 4) and (K,) the rows that they had.
    """
    edge = np.array([size[1], size[0]], np.float32)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    cut = boxes.reshape(-1, 2, 2).clip(0, edge).reshape(-1, 4)
    good = ((centre >= 0) & (centre <= edge) & (cut[:, 2:] > cut[:, :2])).all(axis=1)
    rows = np.flatnonzero(good)
    return (cut, rows) if len(rows) == len(cut) else (cut[rows], rows)


def find(
    look: Callable[[int], Candidates], names: tuple[str, ...], size: tuple[int, int], rules: Rules
) -> Detections:
    """The detections of a picture of (H, W) pixels, best first.

    Args:
        look: at most so many candidates, the best ones; asked again for more where too few are left of them.
    """
    most = rules.candidates
    while True:
        found = look(most)
        result = settle(found, names, size, rules)
        if len(result) >= rules.max_detections or len(found.scores) < most or most >= _LAST:
            return result
        most *= _GROWTH


def choose(
    logits: Floats, boxes: Floats, objectness: Floats | None, rules: Rules, most: int | None = None
) -> Candidates:
    """The pairs of region and label that reach the label's threshold; of too many the best.

    Args:
        logits: (Q, P).
        boxes: (Q, 4) xyxy pixels, cut.
        objectness: (Q,) 0-1; needed where the rules multiply by it.
        most: that are too many; None: as many as the rules say.
    """
    most = most or rules.candidates
    if rules.objectness and objectness is not None:
        values, least = _sigmoid(logits) * objectness[:, None], rules.thresholds
    else:  # compared as logits, so that the sigmoid is taken of the few
        values, least = np.ascontiguousarray(logits), _logit(rules.thresholds)
    passes = values >= least
    count = np.count_nonzero(passes)
    if count > most:
        chosen = best_of(values, most, None if count == values.size else passes)
    else:
        chosen = np.flatnonzero(passes)
    found = values.ravel()[chosen]
    rows, labels = np.divmod(chosen, logits.shape[1])
    return Candidates(boxes[rows], found if least is rules.thresholds else _sigmoid(found), labels)


def settle(found: Candidates, names: tuple[str, ...], size: tuple[int, int], rules: Rules) -> Detections:
    """Suppress what a better box covers, and put the best first."""
    kept = nms(
        found.boxes, found.scores, found.labels, rules.nms_iou, rules.class_agnostic, rules.max_detections
    )
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept], names, size)


def best_of(values: Floats, count: int, among: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Where in the flat values the `count` highest are, in their order; of equal ones the first.

    Args:
        among: of the same shape, more than `count` of them True: the others are passed over. None: none are.
    """
    rivals = values.ravel() if among is None else values[among]
    last = np.partition(rivals, len(rivals) - count)[len(rivals) - count]
    above, ties = values > last, values == last
    if among is not None:
        above &= among
        ties &= among
    first = np.flatnonzero(above)
    return np.sort(np.concatenate([first, np.flatnonzero(ties)[: count - len(first)]]))


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp(10,000) is inf, and 1 / inf is 0: a masked prompt's score
        found = np.exp(-logits)
    found += 1
    return np.asarray(np.reciprocal(found, out=found))


def _logit(scores: Floats) -> Floats:
    """-inf for 0: everything reaches it; inf for 1: nothing does."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(scores) - np.log1p(-scores), np.float32)
