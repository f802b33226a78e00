"""Non-maximum suppression: of boxes that overlap, the best stays. Exact, greedy, in blocks of numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Boxes that are settled at once: a block is compared with what was kept before it, then with itself. 32 to 128 are equally fast.
_BLOCK = 64

Floats = NDArray[np.float32]


def nms(
    boxes: Floats,
    scores: NDArray[np.floating],
    label_indices: NDArray[np.int64],
    iou: float,
    class_agnostic: bool = False,
    most: int | None = None,
) -> NDArray[np.int64]:
    """The boxes that no better one of the same label overlaps by more than `iou`.

    Args:
        boxes: (M, 4) xyxy.
        scores: (M,) higher is better; of equal ones the first in the arrays.
        label_indices: (M,).
        iou: 0-1 intersection over union; 1: every box stays.
        class_agnostic: a box suppresses those of other labels as well.
        most: stop after so many; None: all.
    Returns:
        (K,) their indices, best first.
    """
    order = np.argsort(-scores, kind="stable")
    if iou >= 1 or len(order) == 0:
        return order[:most]
    sides = np.ascontiguousarray(boxes[order].T, np.float32)  # (4, M): each side in one stretch of memory
    # inter > iou x (a + b - inter), without a division
    share = (sides[2] - sides[0]) * (sides[3] - sides[1]) * np.float32(iou / (1 + iou))
    labels = None if class_agnostic else label_indices[order].astype(np.int32)
    kept, most = order[:0], len(order) if most is None else most
    for start in range(0, len(order), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(order)))
        block = block[~_overlap(sides, share, labels, kept, block).any(axis=0)]
        good = _greedy(_overlap(sides, share, labels, block, block))
        kept = np.concatenate([kept, block[good]])
        if len(kept) >= most:  # what comes later is never looked at
            break
    return order[kept[:most]]


def iou_matrix(a: Floats, b: Floats) -> Floats:
    """(N, 4) and (M, 4) xyxy -> (N, M) intersection over union; 0 where both have no area."""
    inter = intersections(a, b)
    union = areas(a)[:, None] + areas(b) - inter
    return np.asarray(np.divide(inter, union, out=np.zeros_like(inter), where=union > 0))


def intersections(a: Floats, b: Floats) -> Floats:
    """(N, 4) and (M, 4) xyxy -> (N, M) areas that they share."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    return np.asarray((high - low).clip(0).prod(axis=-1), np.float32)


def areas(boxes: Floats) -> Floats:
    """(N, 4) xyxy -> (N,)."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=-1), np.float32)


def _greedy(overlap: NDArray[np.bool_]) -> list[int]:
    """(B, B), best first -> the rows that no kept row before them overlaps."""
    # a row as one integer: cheaper than an operation of arrays for each
    packed = np.packbits(overlap, axis=1, bitorder="little")
    dead, kept = 0, []
    for i, row in enumerate(packed):
        if not dead >> i & 1:
            kept.append(i)
            dead |= int.from_bytes(row.tobytes(), "little")
    return kept


def _overlap(
    sides: Floats,
    share: Floats,
    labels: NDArray[np.int32] | None,
    one: NDArray[np.int64],
    other: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """(B, R) whether two boxes overlap too much, each operation in place: the time goes to memory, not to arithmetic."""
    a, b = sides[:, one, None], sides[:, other]
    width = np.minimum(a[2], b[2])
    width -= np.maximum(a[0], b[0])
    np.maximum(width, 0, out=width)
    height = np.minimum(a[3], b[3])
    height -= np.maximum(a[1], b[1])
    width *= height  # not above 0 where either side is none
    found: NDArray[np.bool_] = width > share[one, None] + share[other]
    if labels is not None:
        found &= labels[one, None] == labels[other]
    return found
