"""Large pictures in overlapping tiles, so that what is small in them is not small in the detector's input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.detect.nms import areas, intersections, nms
from edgeclip.runtime.detect.postprocess import Candidates, Rules, best_of
from edgeclip.runtime.detections import Detections

MOST_TILES = 1024  # of one picture
_NEAR = 0.01  # of a tile's side, at least 2 pixels: a box that ends so near the tile's edge was cut by it
_SHARE = 4  # times as many candidates as of one picture go into suppression, which this bounds
_COVERED = 0.7  # of a cut box's area within a whole one of its label: it is a piece of that


@dataclass(frozen=True)
class Tiling:
    """How a large picture is cut.

    Raises:
        InputError: a size below 1, or an overlap outside 0 to 0.9.
    """

    size: int = 640  # side of a tile, pixels of the picture
    overlap: float = (
        0.2  # of a tile's side that its neighbour shares; wider than the largest object that `whole` misses
    )
    whole: bool = True  # look at the whole picture as well, for what is larger than a tile

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap <= 0.9:
            raise InputError(
                f"tile: expected a size of 1 pixel or more and an overlap of 0 to 0.9, got {self.size} and {self.overlap:g}."
            )

    def tiles(self, size: tuple[int, int]) -> NDArray[np.int64]:
        """(T, 4) xyxy pixels of the tiles of a picture of (H, W), row by row; one, the picture, where it is no larger than a tile.

        Raises:
            InputError: more than MOST_TILES.
        """
        height, width = size
        rows, columns = self._starts(height), self._starts(width)
        if len(rows) * len(columns) > MOST_TILES:
            raise InputError(
                f"tile: expected at most {MOST_TILES} tiles, got {len(rows) * len(columns)} for {width} x {height} pixels. "
                "Choose larger tiles, or less overlap."
            )
        y, x = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
        return np.stack([x, y, np.minimum(x + self.size, width), np.minimum(y + self.size, height)], axis=-1)

    def _starts(self, length: int) -> NDArray[np.int64]:
        """Evenly spread, the last one at the end."""
        beyond = max(length - self.size, 0)
        steps = math.ceil(beyond / max(self.size * (1 - self.overlap), 1))
        return np.rint(np.linspace(0, beyond, steps + 1)).astype(np.int64)


def is_cut(boxes: NDArray[np.float32], tile: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(M,) which boxes, xyxy pixels of the tile, end at an edge of it that is not the picture's own."""
    x0, y0, x1, y1 = tile.tolist()
    sides = np.array([x1 - x0, y1 - y0], np.float32)
    near = np.maximum(_NEAR * sides, 2)
    inner = np.array([x0 > 0, y0 > 0, x1 < size[1], y1 < size[0]])
    touches = np.concatenate([boxes[:, :2] <= near, boxes[:, 2:] >= sides - near], axis=1)
    return np.asarray((touches & inner).any(axis=1))


def merge(
    parts: list[tuple[Candidates, NDArray[np.bool_]]],
    names: tuple[str, ...],
    size: tuple[int, int],
    rules: Rules,
) -> Detections:
    """The candidates of all tiles, each with what its tile cut, as the detections of one picture.

    A cut box loses to a whole one, however much better its score: where the two overlap as for suppression, or where it is a piece of it.
    """
    thinned = [_thinned(found, cut, rules) for found, cut in parts]
    boxes, scores, labels, cut = (np.concatenate(rows) for rows in zip(*thinned, strict=True))
    if len(scores) > _SHARE * rules.candidates:
        best = best_of(scores, _SHARE * rules.candidates)
        boxes, scores, labels, cut = boxes[best], scores[best], labels[best], cut[best]
    # whole ones first: scores end at 1
    kept = nms(boxes, scores.astype(np.float64) + ~cut, labels, rules.nms_iou, rules.class_agnostic)
    whole, pieces = kept[~cut[kept]], kept[cut[kept]]
    covered = intersections(boxes[pieces], boxes[whole]) > _COVERED * areas(boxes[pieces])[:, None]
    if not rules.class_agnostic:
        covered &= labels[pieces, None] == labels[whole]
    kept = np.concatenate([whole, pieces[~covered.any(axis=1)]])
    kept = kept[np.argsort(-scores[kept], kind="stable")][: rules.max_detections]
    return Detections(boxes[kept], scores[kept], labels[kept], names, size)


def _thinned(found: Candidates, cut: NDArray[np.bool_], rules: Rules) -> tuple[NDArray[Any], ...]:
    """-> boxes, scores, labels, cut: a tile's own, whole and cut ones suppressed apart, so that one large thing does not fill the list."""
    kinds = cut + 2 * (np.zeros_like(found.labels) if rules.class_agnostic else found.labels)
    kept = nms(found.boxes, found.scores, kinds, rules.nms_iou)
    return found.boxes[kept], found.scores[kept], found.labels[kept], cut[kept]
