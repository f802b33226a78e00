"""Looking within what was found: the crop of each detection is a picture of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeclip.runtime.detect.prompt_tree import Prompt, PromptTree
from edgeclip.runtime.detections import Detections

MOST_CROPS = 64  # looked into in one picture, the best first
_MARGIN = 0.1  # of a box's sides, on each side: what ends at a face's box (an ear) is seen whole

log = logging.getLogger(__name__)

# (K, 4) int boxes of crops, (L,) columns of labels -> the detections of each crop, in its own pixels
Look = Callable[[NDArray[np.int64], NDArray[np.int64]], list[Detections]]


def search_within(found: Detections, tree: PromptTree, most: int, look: Look) -> Detections:
    """Look for what the tree has within the detections, and within those, level by level.

    A detection within another one has its centre in that one's box.

    Args:
        found: of the tree's first level, in the whole picture.
        most: detections in all; a deeper level gets what the levels above leave.
    Returns:
        All, best first, with `parents`.
    """
    parts, parents = [found], [np.full(len(found), -1)]
    # each level: prompts that have prompts within them, and the rows that were found for them
    level = [(p, np.flatnonzero(found.label_indices == p.label)) for p in tree.prompts if p.within]
    count, crops = len(found), 0
    while level:
        deeper: list[tuple[Prompt, NDArray[np.int64]]] = []
        every = _joined(parts)
        for prompt, rows in level:
            searched = rows[: MOST_CROPS - crops]
            if len(searched) < len(rows):
                log.warning(
                    "%d of %d detections of %r are not looked into: %d crops are the most for a picture",
                    len(rows) - len(searched), len(rows), every.labels[prompt.label], MOST_CROPS,
                )  # fmt: skip
            crops += len(searched)
            if not len(searched):
                continue
            boxes = _crops(every.boxes[searched], every.size)
            columns = np.array([inner.label for inner in prompt.within])
            first = count
            for row, box, seen in zip(searched, boxes, look(boxes, columns), strict=True):
                inner = _of_parent(seen, box, every.boxes[row], every.size)[: most - count]
                parts.append(inner)
                parents.append(np.full(len(inner), row))
                count += len(inner)
            new = _joined(parts).label_indices[first:]
            deeper += [(p, first + np.flatnonzero(new == p.label)) for p in prompt.within if p.within]
        level = deeper
    every = replace(_joined(parts), parents=np.concatenate(parents).astype(np.int64))
    return every[np.argsort(-every.scores, kind="stable")]


def _joined(parts: list[Detections]) -> Detections:
    boxes, scores, labels = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("boxes", "scores", "label_indices")
    )
    return Detections(boxes, scores, labels, parts[0].labels, parts[0].size)


def _crops(boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.int64]:
    """(K, 4) boxes to whole pixels with a margin, within the picture of (H, W)."""
    edge = np.array([size[1], size[0]])
    margin = _MARGIN * (boxes[:, 2:] - boxes[:, :2])
    low = np.floor(boxes[:, :2] - margin).clip(0, edge - 1)
    high = np.ceil(boxes[:, 2:] + margin).clip(low + 1, edge)
    return np.concatenate([low, high], axis=1).astype(np.int64)


def _of_parent(
    seen: Detections, crop: NDArray[np.int64], parent: NDArray[np.float32], size: tuple[int, int]
) -> Detections:
    """A crop's detections on the picture, those whose centre lies in the parent's box."""
    boxes = (seen.boxes + np.tile(crop[:2], 2)).astype(np.float32)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    good = ((centre >= parent[:2]) & (centre <= parent[2:])).all(axis=1)
    return replace(seen, boxes=boxes, size=size)[np.flatnonzero(good)]
