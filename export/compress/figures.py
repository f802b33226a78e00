"""What is asked of a compressed tower: its distance to fp32, and what that does to labels and to neighbours.

Two halves of the user's samples: scales, sensitivity and search see the calibration half only; the figures that a manifest
states come from the held-out half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Fidelity
from edgeclip.runtime.fidelity import check_sane, cosine, measure, relative_distance

Array = NDArray[Any]
Half = Literal["calibration", "held_out"]
NEIGHBOURS = 10  # of recall; half of the others where there are fewer than twice as many


@dataclass(frozen=True)
class Figures:
    """How far a tower is from fp32 on one half of the samples."""

    samples: int
    distance: float  # relative distance, see runtime/fidelity.py
    cosine: float  # mean
    cosine_min: float
    recall: (
        float  # points: -100 * the share of fp32's nearest neighbours that are no longer among the nearest
    )
    # points, 0 or below where it lost: against labels the change of accuracy, else -100 * the share of other answers
    top1: float | None = None  # None: no labels or no text tower at hand
    # of a detector, see regions.py; its samples are regions
    box: float | None = None  # mean change of a corner, as a share of the picture's side
    score: float | None = None  # mean change of a score, 0-1
    agreement: float | None = None  # F1 of the detections with fp32's; None: neither finds any


@dataclass(frozen=True)
class Judge:
    """Measures one tower's rows against fp32's."""

    reference: (
        Array  # (M, D) fp32's rows of every input; the first `samples` are samples, others are label prompts
    )
    halves: Mapping[Half, Array]  # positions of its samples
    # rows (M, D) of this tower and a half -> (pictures of that half, labels) cosines; None: no labels
    cosines: Callable[[Array, Half], Array] | None = None
    truth: Mapping[Half, Array] | None = None  # label numbers of that half's pictures; None: fp32's answers

    def check(self, whose: str) -> None:
        """Raise CheckFailed for a reference that is not finite or all the same."""
        check_sane(self.reference, whose)

    def distance(self, a: Array, b: Array) -> float:
        """Relative distance of (N, D) rows."""
        return relative_distance(a.astype(np.float64), b.astype(np.float64))

    def figures(self, rows: Array, half: Half) -> Figures:
        """Raises CheckFailed for rows that are not finite or all the same."""
        a, b = self._of(self.reference, half), self._of(rows, half)
        check_sane(b, "compressed graph")
        cosines = cosine(a, b)
        return Figures(
            samples=len(a),
            distance=relative_distance(a, b),
            cosine=float(cosines.mean()),
            cosine_min=float(cosines.min()),
            recall=100 * (neighbour_recall(a, b) - 1),
            top1=None if self.cosines is None else self.top1(self.cosines(rows, half), half),
        )

    def fidelity(self, rows: Array, half: Half, against: str) -> Fidelity:
        """For the manifest."""
        a, b = self._of(self.reference, half), self._of(rows, half)
        found = measure(a, b)
        top1 = None
        if self.cosines is not None:
            same = self.cosines(self.reference, half).argmax(axis=1) == self.cosines(rows, half).argmax(
                axis=1
            )
            top1 = float(same.mean())
        return replace(found, top1_agreement=top1, against=against)

    def targets(self, half: Half) -> Array:
        """(pictures,) label numbers: the truth where it is known, else fp32's answers."""
        if self.truth is not None:
            return self.truth[half]
        assert self.cosines is not None
        answers: Array = self.cosines(self.reference, half).argmax(axis=1)
        return answers

    def _of(self, rows: Array, half: Half) -> Array:
        chosen: Array = rows[self.halves[half]].astype(np.float64)
        return chosen

    def top1(self, cosines: Array, half: Half) -> float:
        """Points by which (pictures of the half, labels) cosines are right more often than fp32's."""
        assert self.cosines is not None
        wanted = self.targets(half)
        before = (self.cosines(self.reference, half).argmax(axis=1) == wanted).mean()
        return float(100 * ((cosines.argmax(axis=1) == wanted).mean() - before))


def neighbour_recall(a: Array, b: Array) -> float:
    """Share of each row's nearest other rows under a, by cosine, that are among the nearest under b; a, b: (N, D)."""
    k = max(1, min(NEIGHBOURS, (len(a) - 1) // 2))
    near_a, near_b = _nearest(a, k), _nearest(b, k)
    return float(np.mean([len(np.intersect1d(x, y)) / k for x, y in zip(near_a, near_b, strict=True)]))


def _nearest(rows: Array, k: int) -> Array:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest: Array = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return nearest
