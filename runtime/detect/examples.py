"""Prompts that are pictures: find what looks like the thing in this box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.detect.nms import areas, iou_matrix
from edgeclip.runtime.detect.proposals import Proposals
from edgeclip.runtime.images.decode import Picture

Floats = NDArray[np.float32]

_AS_GOOD = 0.8  # of the best overlap: such boxes are as good, and their embeddings decide


@dataclass(frozen=True, eq=False)
class Example:
    """A picture, and a box around what to look for. Examples of one label are averaged."""

    picture: Picture
    box: Sequence[float] | None = None  # xyxy, pixels of the picture; None: what stands out most in it
    label: str = "example 1"

    def check(self, where: str) -> None:
        """Raise InputError for a box that is none, or an empty label."""
        if not isinstance(self.label, str) or not self.label.strip():
            raise InputError(f"{where}.label: expected a text, got {self.label!r}.")
        if self.box is None:
            return
        box = np.asarray(self.box, np.float64) if np.ndim(self.box) == 1 else np.empty(0)
        if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
            raise InputError(
                f"{where}.box: expected (x1, y1, x2, y2) in pixels with x1 < x2 and y1 < y2, got {self.box!r}."
            )


def query_of(seen: Proposals, box: Sequence[float] | None, where: str) -> Floats:
    """(D,) the embedding of the region that stands for the box.

    Of the regions that overlap the box about as well as the best one does, the one whose embedding is the least like the picture's
    mean: the others hold background. Without a box, the region of the highest objectness; where the model gives none, the whole
    picture is the box. Source: image-conditioned detection of Minderer et al. 2022, arXiv:2205.06230, and of OWLv2, arXiv:2306.09683.

    Raises:
        InputError: no region lies in the picture, or the box lies outside it.
    """
    height, width = seen.size
    if len(seen) == 0:
        raise InputError(f"{where}: the detector sees nothing in this picture. Use another one.")
    if box is None and seen.objectness is not None:
        return np.asarray(seen.embeddings[int(np.argmax(seen.objectness))])
    wanted = np.asarray((0, 0, width, height) if box is None else box, np.float32)[None]
    if (wanted[0, 2:] <= 0).any() or wanted[0, 0] >= width or wanted[0, 1] >= height:
        raise InputError(
            f"{where}.box: expected a box in the picture of {width} x {height} pixels, got {tuple(map(float, wanted[0]))}."
        )
    overlap = iou_matrix(wanted, seen.boxes)[0]
    if not overlap.any():
        overlap = _generalised(wanted[0], seen.boxes)  # how near, where nothing overlaps
    best = overlap.max()
    # of values below 0 the nearest alone: 0.8 of a negative one is above it
    as_good = np.flatnonzero(overlap >= (_AS_GOOD * best if best > 0 else best))
    likeness = seen.embeddings[as_good] @ seen.embeddings.mean(axis=0)
    return np.asarray(seen.embeddings[as_good[int(np.argmin(likeness))]])


def average(labels: Sequence[str], vectors: Sequence[Floats]) -> tuple[tuple[str, ...], Floats]:
    """Each label once, in order of appearance, with the mean of its (D,) unit vectors, of unit length again: (P, D)."""
    names = tuple(dict.fromkeys(labels))
    means = np.stack(
        [
            np.mean([v for label, v in zip(labels, vectors, strict=True) if label == name], axis=0)
            for name in names
        ]
    )
    return names, np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def _generalised(box: Floats, boxes: Floats) -> Floats:
    """(Q,) generalised IoU of boxes that do not overlap `box`: minus the share of their common hull that is in neither."""
    hull = np.concatenate([np.minimum(box[:2], boxes[:, :2]), np.maximum(box[2:], boxes[:, 2:])], axis=1)
    return np.asarray((areas(box[None]) + areas(boxes)) / areas(hull) - 1, np.float32)
