"""An index copied to Qdrant, in batches; one that was interrupted goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeclip.errors import InputError
from edgeclip.runtime.index.away.qdrant import QdrantIndex
from edgeclip.runtime.index.away.qdrant_points import SENT
from edgeclip.runtime.index.away.vectors import AT_ONCE, known_origin

if TYPE_CHECKING:
    from edgeclip.runtime.index.index import Index


@dataclass(frozen=True)
class PushReport:
    """What a push did, in items."""

    sent: int
    present: int  # were there already
    removed: int  # by `prune`


def push(
    index: Index, target: QdrantIndex, *, prune: bool = False, tell: Callable[[int], None] | None = None
) -> PushReport:
    """Copy what the target does not have, under the index's ids.

    Args:
        prune: remove from the target what the index does not have (any more).
        tell: called with the items that are dealt with so far.
    Raises:
        InputError: vectors of another model, or ids that are other items there.
    """
    known_origin(target, index.origin, target.place)
    sent = done = 0
    living: set[int] = set()
    for ids, vectors, items in index.batches(SENT):
        numbers = ids.tolist()
        there = target.points.present(numbers)
        for number, item in zip(numbers, items, strict=True):
            if there.get(number, item.key) != item.key:
                raise InputError(
                    f"{target.place}: id {number} is {there[number]!r} there and {item.key!r} here: it holds another index. "
                    "Choose another collection, or pass --overwrite."
                )
        missing = np.array([i for i, number in enumerate(numbers) if number not in there], np.int64)
        if len(missing):
            target.points.reserve(numbers[-1] + 1)
            target.points.put(ids[missing], vectors[missing], [items[i] for i in missing])
        sent, done = sent + len(missing), done + len(items)
        living.update(numbers if prune else ())
        if tell:
            tell(done)
    return PushReport(sent, done - sent, _prune(target, living) if prune else 0)


def _prune(target: QdrantIndex, living: set[int]) -> int:
    gone = [number for number, _ in target.items() if number not in living]
    return sum(target.remove(gone[first : first + AT_ONCE]) for first in range(0, len(gone), AT_ONCE))
