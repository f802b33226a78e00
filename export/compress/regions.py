"""A detector on the bench: what it says of a region stands side by side in one array, and is judged as boxes and scores.

Of the 3,600 regions of a picture most are background that nobody is shown, and a mean over all of them says nothing of those that are;
the largest difference grows with the number of pictures. So `box`, `score` and `top1` are means over the regions which fp32
scores best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Detection, Fidelity, Port
from edgeclip.export.compress.figures import Figures, Half, neighbour_recall
from edgeclip.runtime.detection_fidelity import ROWS, Seen, check_seen, measure_regions, to_scores
from edgeclip.runtime.fidelity import relative_distance

Array = NDArray[Any]
BEST = 100  # regions of a picture: COCO's evaluators count so many detections
LABELS = 32  # regions that stand in for labels where the bundle reads no texts


def side_by_side(outputs: Sequence[Array]) -> Array:
    """(N, D) of a graph that gives one; of a detector's (N, Q) and (N, Q, K) outputs (N, Q, C), in their order."""
    if len(outputs) == 1:
        return outputs[0]
    return np.concatenate([x if x.ndim == 3 else x[..., None] for x in outputs], axis=2)


def seen(rows: Array, ports: Sequence[Port]) -> Seen:
    """(N, Q, C) taken apart again."""
    found, start = {}, 0
    for port in ports:
        width = port.shape[2] if len(port.shape) == 3 else 1
        assert isinstance(width, int)
        found[port.name] = rows[..., start] if len(port.shape) == 2 else rows[..., start : start + width]
        start += width
    return Seen.of(found)


def stand_ins(rows: Array, ports: Sequence[Port]) -> Array:
    """(LABELS, D) unit rows of regions at equal steps, for a bundle without texts."""
    flat = seen(rows, ports).embeddings
    flat = flat.reshape(-1, flat.shape[-1])
    chosen: Array = flat[:: -(-len(flat) // LABELS)]
    return chosen


@dataclass(frozen=True)
class RegionJudge:
    """`figures.Judge` of a detector."""

    reference: Array  # (M, Q, C) of fp32's graph
    halves: Mapping[Half, Array]  # positions of its pictures
    ports: tuple[Port, ...]  # the graph's outputs
    vectors: Array  # (P, D) unit rows of the labels that scores are made with
    detection: Detection

    def check(self, whose: str) -> None:
        """Raise CheckFailed for a reference that no detector gives."""
        check_seen(seen(self.reference, self.ports).arrays(), whose)

    def figures(self, rows: Array, half: Half) -> Figures:
        """Raises CheckFailed for outputs that no detector gives."""
        a, b = (seen(side[self.halves[half]], self.ports) for side in (self.reference, rows))
        check_seen(b.arrays(), "compressed graph")
        found = measure_regions(a, b, self.vectors, self.detection)
        assert found.detection is not None
        boxes, scores, same = zip(*(self._best(a, b, i) for i in range(len(a.boxes))), strict=True)
        return Figures(
            samples=found.samples,
            distance=found.relative_distance,
            cosine=found.cosine_mean,
            cosine_min=found.cosine_min,
            recall=100 * (neighbour_recall(*(_some(side) for side in (a, b))) - 1),
            top1=100 * (float(np.mean(same)) - 1),
            box=float(np.mean(boxes)),
            score=float(np.mean(scores)),
            agreement=found.detection.agreement,
        )

    def fidelity(self, rows: Array, half: Half, against: str) -> Fidelity:
        """For the manifest."""
        a, b = (seen(side[self.halves[half]], self.ports) for side in (self.reference, rows))
        return replace(measure_regions(a, b, self.vectors, self.detection), against=against)

    def distance(self, a: Array, b: Array) -> float:
        """Relative distance of the embeddings in (N, Q, C) rows."""
        return relative_distance(*(_some(seen(side, self.ports)) for side in (a, b)))

    def _best(self, a: Seen, b: Seen, i: int) -> tuple[float, float, float]:
        """Of picture i's best regions: mean change of a corner, of the best label's score, and the share that keeps its label."""
        one, other = (self._scores(side, i) for side in (a, b))
        best = np.argsort(-one.max(axis=1), kind="stable")[:BEST]
        labels = one[best].argmax(axis=1)
        box = np.abs(a.boxes[i, best].astype(np.float64) - b.boxes[i, best]).mean()
        score = np.abs(one[best, labels] - other[best, labels]).mean()
        return float(box), float(score), float((other[best].argmax(axis=1) == labels).mean())

    def _scores(self, side: Seen, i: int) -> Array:
        kept = self.detection.objectness and side.objectness is not None
        return to_scores(
            side.logits(i, self.vectors), side.objectness[i] if kept and side.objectness is not None else None
        )


def _some(side: Seen) -> Array:
    """(R, D) embeddings of at most ROWS regions, at equal steps over all pictures."""
    flat = side.embeddings.reshape(-1, side.embeddings.shape[-1])
    chosen: Array = flat[:: -(-len(flat) // ROWS)].astype(np.float64)
    return chosen
