"""How far one detector's boxes and scores are from another's: pure functions of arrays, in float64.

A score near a threshold or an overlap near NMS's may fall on either side, so differences are stated beside what they do to the
detections: the agreement of both lists.
Shapes: N pictures, Q regions of each, P labels, D embedding width; a = the source's, b = the variant's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Detection, DetectionFidelity, Fidelity
from edgeclip.errors import CheckFailed
from edgeclip.runtime.fidelity import CONSTANT, cosine, figures, max_abs

Array = NDArray[Any]
Picture = tuple[Array, Array]  # boxes (Q, 4) xyxy, scores (Q, P) in 0-1

SAME_BOX = 0.9  # IoU from which two boxes of one label are the same detection
MOST = 300  # best-scored pairs of region and label of a picture that enter NMS here
ROWS = (
    1024  # regions, taken at equal steps, that figures of pairs are of: all pairs of 10,000 would need 800 MB
)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a detector says of some pictures, without labels. A label's logit is scale x cosine + bias."""

    boxes: Array  # (N, Q, 4) xyxy, 0-1 of the input
    embeddings: Array  # (N, Q, D) unit rows
    scales: Array  # (N, Q)
    biases: Array  # (N, Q)
    objectness: Array | None = None  # (N, Q) 0-1; None: the model has none

    def logits(self, picture: int, vectors: Array) -> Array:
        """(Q, P) float64 of one picture's regions for (P, D) unit rows."""
        cosines = self.embeddings[picture].astype(np.float64) @ vectors.astype(np.float64).T
        found: Array = self.scales[picture, :, None] * cosines + self.biases[picture, :, None]
        return found

    def take(self, regions: Array) -> Seen:
        """Some of the regions of every picture."""
        return Seen.of({name: array[:, regions] for name, array in self.arrays().items()})

    def first(self, pictures: int) -> Seen:
        """The first few pictures."""
        return Seen.of({name: array[:pictures] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, Array]:
        """By the names of a detector's outputs."""
        named = {
            "boxes": self.boxes, "region_embeddings": self.embeddings, "logit_scales": self.scales,
            "logit_biases": self.biases, "objectness": self.objectness,
        }  # fmt: skip
        return {name: array for name, array in named.items() if array is not None}

    @staticmethod
    def of(arrays: Mapping[str, Array]) -> Seen:
        """From a detector's outputs by name."""
        rows, scales, biases = (
            arrays[name] for name in ("region_embeddings", "logit_scales", "logit_biases")
        )
        return Seen(arrays["boxes"], rows, scales, biases, arrays.get("objectness"))


def measure_detection(a: Seen, b: Seen, vectors: Array, detection: Detection) -> DetectionFidelity:
    """Differences of boxes and scores, and agreement of the detections that follow.

    Args:
        vectors: (P, D) unit rows of labels.
        detection: threshold, NMS, and whether objectness is part of a score.
    Raises:
        ValueError: shapes differ, or no label.
    """
    if a.boxes.shape != b.boxes.shape or not a.boxes.size or not len(vectors):
        raise ValueError(
            f"want two (N, Q, 4) and a label, got {a.boxes.shape}, {b.boxes.shape}, {len(vectors)}"
        )

    def scored(side: Seen, i: int) -> Picture:
        objectness = side.objectness[i] if detection.objectness and side.objectness is not None else None
        return side.boxes[i], to_scores(side.logits(i, vectors), objectness)

    return measure_scored(((scored(a, i), scored(b, i)) for i in range(len(a.boxes))), detection)


def to_scores(logits: Array, objectness: Array | None) -> Array:
    """(Q, P) logits and (Q,) objectness -> (Q, P) float64 in 0-1."""
    scores: Array = 0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))  # no overflow at any logit
    return scores if objectness is None else scores * objectness[:, None]


def measure_scored(pairs: Iterable[tuple[Picture, Picture]], detection: Detection) -> DetectionFidelity:
    """`measure_detection` of boxes and scores, picture by picture: (a's, b's)."""
    regions = labels = pictures = found = same = 0
    box = score = box_sum = score_sum = 0.0
    for (boxes_a, scores_a), (boxes_b, scores_b) in pairs:
        boxes, scores = (
            np.abs(x.astype(np.float64) - y.astype(np.float64))
            for x, y in ((boxes_a, boxes_b), (scores_a, scores_b))
        )
        pictures, regions, labels = pictures + 1, regions + len(boxes), scores.shape[1]
        box, score = max(box, float(boxes.max())), max(score, float(scores.max()))
        box_sum, score_sum = box_sum + float(boxes.mean()), score_sum + float(scores.mean())
        one, other = (_detections(*side, detection) for side in ((boxes_a, scores_a), (boxes_b, scores_b)))
        found += len(one[0]) + len(other[0])
        same += _matches(one, other)
    agreement = 2 * same / found if found else None
    return DetectionFidelity(regions, labels, box, box_sum / pictures, score, score_sum / pictures, agreement)


def measure_regions(a: Seen, b: Seen, vectors: Array, detection: Detection) -> Fidelity:
    """Every figure of a graph that gives embeddings: of its regions, and of what follows from them for (P, D) labels."""
    wide_a, wide_b = (side.embeddings.reshape(-1, vectors.shape[1]).astype(np.float64) for side in (a, b))
    best = [(rows @ vectors.astype(np.float64).T).argmax(axis=1) for rows in (wide_a, wide_b)]
    return replace(
        measure_rows(wide_a, wide_b),
        top1_agreement=float((best[0] == best[1]).mean()),
        detection=measure_detection(a, b, vectors, detection),
    )


def measure_head(a: Seen, found: Mapping[str, Array], vectors: Array, detection: Detection) -> Fidelity:
    """Every figure of a graph that ends in logits, which stand in the embeddings' place as shares of themselves.

    Args:
        found: `boxes` (N, Q, 4), `logits` (N, Q, P) of the labels `vectors` (P, D), and perhaps `objectness` (N, Q).
    """
    kept = detection.objectness and a.objectness is not None
    count = range(len(a.boxes))
    one = [a.objectness[i] if kept and a.objectness is not None else None for i in count]
    other = [found["objectness"][i] if kept else None for i in count]
    pairs = (
        (
            (a.boxes[i], to_scores(a.logits(i, vectors), one[i])),
            (found["boxes"][i], to_scores(found["logits"][i], other[i])),
        )
        for i in count
    )
    measured = measure_scored(pairs, detection)
    return replace(measure_rows(*logit_shares(a, found["logits"], vectors)), detection=measured)


def logit_shares(a: Seen, logits: Array, vectors: Array) -> tuple[Array, Array]:
    """Wanted and found logits (N * Q, P), both over 1 + |scale| + |bias| of their region: a share as a cosine's difference is one."""
    size = (1 + np.abs(a.scales.astype(np.float64)) + np.abs(a.biases))[..., None]
    want = np.stack([a.logits(i, vectors) for i in range(len(a.boxes))])
    shape = (-1, len(vectors))
    return (want / size).reshape(shape), (logits.astype(np.float64) / size).reshape(shape)


def measure_rows(a: Array, b: Array) -> Fidelity:
    """Figures of many (M, D) float64 rows; those of pairs of rows are of ROWS of them at equal steps."""
    step = -(-len(a) // ROWS)
    cosines = cosine(a, b)
    return replace(
        figures(a[::step], b[::step]),
        samples=len(a),
        max_abs=max_abs(a, b),
        cosine_mean=float(cosines.mean()),
        cosine_p1=float(np.percentile(cosines, 1)),
        cosine_min=float(cosines.min()),
    )


def check_seen(arrays: Mapping[str, Array], whose: str) -> None:
    """Raise CheckFailed for what no detector gives: values that are not finite, rows not of unit length, the same of every picture.

    Args:
        arrays: by output name, of all regions of N pictures.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise CheckFailed(f"{whose}: {name} holds values that are not finite")
        if name == "region_embeddings" and np.abs(np.linalg.norm(array, axis=-1) - 1).max() > 1e-2:
            raise CheckFailed(f"{whose}: region embeddings are not of unit length")
        # boxes may hang on the grid alone; what is in them may not be the same in every picture
        if (
            name in ("region_embeddings", "logits")
            and len(array) > 1
            and np.ptp(array, axis=0).max() < CONSTANT
        ):
            raise CheckFailed(f"{whose}: gives the same {name} for different pictures")
        if (
            name in ("region_embeddings", "logits", "boxes")
            and array.shape[1] > 1
            and np.ptp(array, axis=1).max() < CONSTANT
        ):
            raise CheckFailed(f"{whose}: gives the same {name} for every region")


def _detections(boxes: Array, scores: Array, detection: Detection) -> tuple[Array, Array]:
    """(Q, 4) and (Q, P) -> boxes (M, 4) and labels (M,) above the threshold that NMS leaves, best first."""
    regions, labels = np.nonzero(scores >= detection.threshold)
    order = np.argsort(-scores[regions, labels], kind="stable")[:MOST]
    regions, labels = regions[order], labels[order]
    candidates = boxes[regions].astype(np.float64)
    overlaps = box_iou(candidates, candidates) > detection.nms_iou
    if not detection.class_agnostic:
        overlaps &= labels[:, None] == labels
    left = np.ones(len(candidates), bool)
    for i in range(len(candidates)):
        if left[i]:
            left[i + 1 :] &= ~overlaps[i, i + 1 :]
    return candidates[left], labels[left]


def _matches(one: tuple[Array, Array], other: tuple[Array, Array]) -> int:
    """Detections of one list, best first, that have a partner of their own in the other."""
    (boxes_a, labels_a), (boxes_b, labels_b) = one, other
    if not len(boxes_a) or not len(boxes_b):
        return 0
    overlap = np.where(labels_a[:, None] == labels_b, box_iou(boxes_a, boxes_b), 0.0)
    count = 0
    for row in overlap:
        best = int(row.argmax())
        if row[best] >= SAME_BOX:
            overlap[:, best] = 0
            count += 1
    return count


def box_iou(a: Array, b: Array) -> Array:
    """(M, 4) and (K, 4) xyxy -> (M, K) intersection over union; 0 where a box is empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1] - shared
    ratio: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio
