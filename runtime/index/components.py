"""Which items lie together: neighbours above a cosine, joined into components, without comparing all with all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.types import Item
from edgeclip.runtime.kmeans import ROUNDING as ROUNDING
from edgeclip.runtime.kmeans import Numbers as Numbers
from edgeclip.runtime.kmeans import Vectors as Vectors

Progress = Callable[[int], object]  # is told how many more are done
FIRST_K = 16  # neighbours that are asked for first; four times as many where all of them are near
CELLS = 1 << 22  # answers of one search: 48 MB of ids and cosines


class Rows(Protocol):
    """What is grouped: an `Index`, or vectors in memory."""

    def pinned(self) -> Rows:
        """What is there now, whatever a writer does meanwhile."""

    def ids_where(self, where: None) -> Numbers:
        """Ids of all, ascending."""

    def batches(self, size: int = 4096) -> Iterator[tuple[Numbers, Vectors, list[Item]]]:
        """All as ids, unit vectors, items."""

    def search_ids(
        self, queries: NDArray[Any], k: int = 10, *, exact: bool = False
    ) -> tuple[Numbers, Vectors]:
        """(Q, k) ids, -1 where there are fewer, and cosines, best first."""


@dataclass(frozen=True, eq=False)
class Components:
    """A partition of all items."""

    ids: Numbers  # (N,) ascending
    labels: Numbers  # (N,) the place in `ids` of the first member of the item's component

    def groups(self, least: int = 2) -> list[Numbers]:
        """Places in `ids` of each component of at least so many members: the largest first, then the oldest."""
        order = np.argsort(self.labels, kind="stable")
        starts = np.flatnonzero(np.diff(self.labels[order], prepend=-1))
        found = [part for part in np.split(order, starts[1:]) if len(part) >= least]
        return sorted(found, key=lambda part: (-len(part), part[0]))


class Sets:
    """Disjoint sets of 0..N-1, joined many pairs at a time."""

    def __init__(self, count: int) -> None:
        self._root = np.arange(count)  # of each its set's least member, once `join` has returned

    @property
    def roots(self) -> Numbers:
        """(N,) the least member of each one's set."""
        return self._root

    def join(self, left: Numbers, right: Numbers) -> None:
        """Make each (left, right) one set: the greater root hooks onto the less until no pair differs."""
        while True:
            a, b = self._root[left], self._root[right]
            different = a != b
            if not different.any():
                return
            left, right, a, b = left[different], right[different], a[different], b[different]
            np.minimum.at(self._root, np.maximum(a, b), np.minimum(a, b))
            while (above := self._root[self._root]).tobytes() != self._root.tobytes():
                self._root = above


def check_threshold(threshold: float) -> float:
    """Raise InputError unless it is a cosine that two pictures can have."""
    if not -1 <= threshold <= 1:
        raise InputError(f"threshold: expected a cosine, -1 to 1, got {threshold}.")
    return threshold


def join_near(
    rows: Rows, threshold: float, *, exact: bool = False, progress: Progress | None = None
) -> Components:
    """Single linkage: items are in one component if a chain of cosines >= threshold leads from one to the other.

    A pair counts whichever of the two finds the other. Where all the k neighbours that were asked for are near, more are. Equal
    vectors are joined without a search and ask once: a thousand copies cost what one does.

    Args:
        exact: compare every vector, where an index would walk a graph.
    Raises:
        InputError: no cosine.
    """
    least, rows = check_threshold(threshold) - ROUNDING, rows.pinned()
    ids = rows.ids_where(None)
    sets, seen = Sets(len(ids)), dict[bytes, int]()
    for numbers, vectors, _ in rows.batches():
        places = np.searchsorted(ids, numbers)
        twins = np.array(
            [seen.setdefault(_digest(row), place) for row, place in zip(vectors, places.tolist(), strict=True)],
            np.int64,
        )  # fmt: skip
        sets.join(places, twins)
        new = places == twins
        for a, b in _near_pairs(rows, ids, places[new], vectors[new], least, exact):
            sets.join(a, b)
        if progress:
            progress(len(numbers))
    return Components(ids, sets.roots)


def _near_pairs(
    rows: Rows, ids: Numbers, places: Numbers, vectors: Vectors, least: float, exact: bool
) -> Iterator[tuple[Numbers, Numbers]]:
    """(places of the asking, places of the found), k by k."""
    k = min(FIRST_K, len(ids))
    while len(places):
        full = np.zeros(len(places), bool)
        step = max(1, CELLS // k)
        for start in range(0, len(places), step):
            some = slice(start, start + step)
            found, cosines = rows.search_ids(vectors[some], k, exact=exact)
            near = (found >= 0) & (cosines >= least)
            full[some] = near[:, -1]
            asking, _ = np.nonzero(near)
            yield places[some][asking], np.searchsorted(ids, found[near])
        if k == len(ids):
            return
        k, places, vectors = min(4 * k, len(ids)), places[full], vectors[full]


def _digest(row: Vectors) -> bytes:
    return blake2b(row.tobytes(), digest_size=16).digest()


def collect(rows: Rows, ids: Numbers) -> tuple[Vectors, list[Item]]:
    """Vectors and items of these ids, in ascending order of the ids."""
    vectors, items = [np.empty((0, 0), np.float32)], list[Item]()
    for numbers, some, theirs in rows.batches():
        wanted = np.flatnonzero(np.isin(numbers, ids))
        if len(wanted):
            vectors.append(some[wanted])
            items += [theirs[i] for i in wanted.tolist()]
    return np.concatenate(vectors[1:] or vectors), items


@dataclass(frozen=True, eq=False)
class InMemory:
    """Vectors in memory as an index gives them: every one is compared."""

    ids: Numbers  # (N,) ascending
    vectors: Vectors  # (N, D) unit rows
    items: Sequence[Item]

    def pinned(self) -> InMemory:
        """Itself."""
        return self

    def ids_where(self, where: None) -> Numbers:
        """Ids of all, ascending."""
        return self.ids

    def batches(self, size: int = 4096) -> Iterator[tuple[Numbers, Vectors, list[Item]]]:
        """All as ids, unit vectors, items."""
        for start in range(0, len(self.ids), size):
            some = slice(start, start + size)
            yield self.ids[some], self.vectors[some], list(self.items[some])

    def search_ids(
        self, queries: NDArray[Any], k: int = 10, *, exact: bool = False
    ) -> tuple[Numbers, Vectors]:
        """(Q, k) ids, -1 where there are fewer, and cosines, best first."""
        from edgeclip.runtime.index.segment import search_rows

        found, cosines = search_rows(self.vectors, np.asarray(queries, np.float32), k)
        return np.append(self.ids, -1)[found], cosines  # row -1: there are fewer
