"""One state of an index, which does not change while it is searched: its segments and the tail of its log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.filters import Filter
from edgeclip.runtime.index.records import Records, TailRecords
from edgeclip.runtime.index.scales import Scales
from edgeclip.runtime.index.segment import Segment, search_rows
from edgeclip.runtime.index.store import Store, Tail
from edgeclip.runtime.index.types import Hit, Item

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
Rows = NDArray[np.int64]
T = TypeVar("T")


class Part:
    """A segment, or the log's tail.

    Args:
        removed: (R,) ids that are gone, ascending; of any part.
    """

    def __init__(self, held: Segment | Tail, name: str, records: Records | TailRecords, removed: Ids) -> None:
        self._held, self.name, self.records = held, name, records
        self.ids: Ids = held.ids
        self.living = _living(self.ids, removed)  # (N,) bool; None: all are

    @property
    def living_count(self) -> int:
        """How many are not removed."""
        return len(self.ids) if self.living is None else int(self.living.sum())

    @property
    def segment(self) -> Segment | None:
        """None: this is the tail."""
        return self._held if isinstance(self._held, Segment) else None

    def living_rows(self) -> Rows:
        """Rows that are not removed, ascending."""
        return np.arange(len(self.ids)) if self.living is None else np.flatnonzero(self.living)

    def rows_of(self, keys: Sequence[str]) -> dict[str, int]:
        """Key -> row, of those that live here. Of a key's several rows in the tail only the last one can."""
        found = self.records.rows_of(keys)
        return found if self.living is None else {key: row for key, row in found.items() if self.living[row]}

    def vectors(self, rows: Sequence[int] | Rows | None = None) -> Vectors:
        """(n, D) unit rows."""
        if isinstance(self._held, Segment):
            return self._held.vectors(None if rows is None else np.asarray(rows, np.int64))
        return self._held.vectors if rows is None else self._held.vectors[np.asarray(rows, np.int64)]

    def search(
        self, queries: Vectors, k: int, where: NDArray[np.bool_] | None, exact: bool
    ) -> tuple[Rows, Vectors]:
        """(Q, k) rows, -1 where fewer fit, and cosines."""
        allowed = self.living if where is None else where if self.living is None else where & self.living
        if isinstance(self._held, Segment):
            return self._held.search(queries, k, allowed=allowed, exact=exact)
        return search_rows(self._held.vectors, queries, k, allowed)


@dataclass(frozen=True, eq=False)
class View:
    """Segments in the order in which they were written, then the tail: ids ascend from part to part unless segments were merged."""

    parts: tuple[Part, ...]

    def search(
        self,
        queries: Vectors,
        k: int,
        where: Sequence[NDArray[np.bool_]] | None = None,
        *,
        exact: bool = False,
    ) -> tuple[Rows, Rows, Vectors]:
        """(Q, k) numbers of parts and rows, -1 where fewer fit, and cosines, best first."""
        if k < 1:
            raise InputError(f"k: expected 1 or more, got {k}.")
        if len(self.parts) == 1 and where is None:  # most of the time
            row, scores = self.parts[0].search(queries, k, None, exact)
            return np.where(row < 0, -1, 0), row, scores
        empty = np.full((len(queries), 1), -1, np.int64)
        found = [(empty, empty, np.full((len(queries), 1), -np.inf, np.float32))]
        for number, part in enumerate(self.parts):
            row, scores = part.search(queries, k, None if where is None else where[number], exact)
            found.append((np.where(row < 0, -1, number), row, scores))
        numbers, rows, cosines = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        cosines = np.where(rows < 0, np.float32(-np.inf), cosines)
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        numbers, rows, cosines = (np.take_along_axis(each, best, axis=1) for each in (numbers, rows, cosines))
        return numbers, rows, cosines

    def pinned(self) -> View:
        """Itself, as `Index.pinned` gives it."""
        return self

    def search_ids(self, queries: NDArray[Any], k: int = 10, *, exact: bool = False) -> tuple[Ids, Vectors]:
        """(Q, k) ids, -1 where there are fewer, and cosines, best first."""
        part, row, scores = self.search(np.asarray(queries, np.float32), k, exact=exact)
        return self.ids(part, row), scores

    def ids(self, part: Rows, row: Rows) -> Ids:
        """The ids at these places, -1 where there are none."""
        if len(self.parts) == 1:  # most of the time
            return np.where(row < 0, -1, self.parts[0].ids[row])
        found = np.full(part.shape, -1, np.int64)
        for number, one in enumerate(self.parts):
            here = part == number
            found[here] = one.ids[row[here]]
        return found

    def hits(self, part: Rows, row: Rows, scores: Vectors) -> Iterator[list[Hit]]:
        """The answers to each query."""
        ids, items = self.ids(part, row), self._items(part, row)
        for numbers, places, cosines in zip(
            ids.tolist(), zip(part.tolist(), row.tolist(), strict=True), scores.tolist(), strict=True
        ):
            yield [
                Hit(items[place].key, score, number, items[place].record)
                for number, place, score in zip(numbers, zip(*places, strict=True), cosines, strict=True)
                if number >= 0
            ]

    def _items(self, part: Rows, row: Rows) -> dict[tuple[int, int], Item]:
        found: dict[tuple[int, int], Item] = {}
        for number, one in enumerate(self.parts):
            if rows := sorted(set(row[part == number].tolist())):
                found |= zip(((number, r) for r in rows), one.records.items(rows), strict=True)
        return found

    def find(self, keys: Iterable[str]) -> dict[str, tuple[Part, int]]:
        """Key -> where it lives, of those that are there, in the keys' order."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, tuple[Part, int]] = {}
        for part in self.parts if wanted else ():
            found |= {key: (part, row) for key, row in part.rows_of(wanted).items()}
        return {key: found[key] for key in wanted if key in found}

    def alive(self, ids: Sequence[int]) -> list[int]:
        """Those of the ids that are there."""
        found: list[int] = []
        for part in self.parts if len(ids) else ():
            rows = np.flatnonzero(np.isin(part.ids, ids))
            found += part.ids[rows if part.living is None else rows[part.living[rows]]].tolist()
        return found

    def ids_where(self, where: Filter | None) -> Ids:
        """Ids of the living that meet a condition, ascending; None: of all."""
        found = [np.empty(0, np.int64)]
        for part in self.parts:
            fits = np.ones(len(part.ids), np.bool_) if where is None else part.records.where(where)
            found.append(part.ids[fits if part.living is None else fits & part.living])
        return np.sort(np.concatenate(found))

    def batches(
        self, size: int = 4096, *, with_vectors: bool = True
    ) -> Iterator[tuple[Ids, Vectors, list[Item]]]:
        """All the living in the order of their ids, (0, 0) in place of vectors that nobody wants."""
        order = sorted((int(part.ids[0]), number) for number, part in enumerate(self.parts) if len(part.ids))
        for _, number in order:
            part = self.parts[number]
            rows = part.living_rows()
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                vectors = part.vectors(some) if with_vectors else np.empty((0, 0), np.float32)
                yield part.ids[some], vectors, part.records.items(some.tolist())


def _living(ids: Ids, removed: Ids) -> NDArray[np.bool_] | None:
    if not len(removed) or not len(ids) or removed[-1] < ids[0] or removed[0] > ids[-1]:
        return None
    places = np.minimum(
        np.searchsorted(ids, removed), len(ids) - 1
    )  # after each change: N is large, R is not
    gone = places[ids[places] == removed]
    if not len(gone):
        return None
    living = np.ones(len(ids), np.bool_)
    living[gone] = False
    return living


def gather(
    places: Mapping[str, tuple[Part, int]], ask: Callable[[Part, list[int]], Iterable[T]]
) -> dict[str, T]:
    """What each part says of its rows, asked once, in the keys' order."""
    rows: dict[Part, dict[str, int]] = {}
    for key, (part, row) in places.items():
        rows.setdefault(part, {})[key] = row
    found: dict[str, T] = {}
    for part, own in rows.items():
        found |= zip(own, ask(part, list(own.values())), strict=True)
    return {key: found[key] for key in places}


def look(store: Store, before: View | None) -> View:
    """The state that the store holds now; segments and records that an earlier view opened are taken from it."""
    try:
        return _look(store, before)
    except (InputError, OSError):
        if not store.refresh():
            raise
        return look(store, before)  # a writer has replaced these segments since the manifest was read


def _look(store: Store, before: View | None) -> View:
    manifest, removed = store.manifest, store.removed
    known = {part.name: part for part in before.parts} if before else {}
    scales: Scales | None = None if store.scales is None else Scales.from_bytes(store.scales)
    parts: list[Part] = []
    for entry in manifest.segments:
        old, folder = known.get(entry.name), store.path / "segments" / entry.name
        segment = old.segment if old else None
        if segment is None:
            segment = Segment.open(folder, manifest.origin.dim, manifest.settings, scales)
        records = old.records if old else Records.open(folder)
        parts.append(Part(segment, entry.name, records, removed))
    if len(store.tail.ids):
        parts.append(Part(store.tail, "", TailRecords(store.tail.items), removed))
    return View(tuple(parts))
