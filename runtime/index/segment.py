"""A segment: vectors that are written once, and their search. What it holds, besides the records of others:

facts.json       format, kind ("exact" or "graph"), precision, count, dim, whether slots.bin is there
ids.bin          int64 of each row, ascending
graph.usearch    kind "graph": codes and links; see graph.py
slots.bin        kind "graph", where several threads built it: uint32 place of each row among the codes
vectors.bin      float16 or int8 of each row: of kind "exact", and for "bits", which rank again by them
signs.bin        "bits" of kind "exact": the packed signs of each row
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index import exact as flat
from edgeclip.runtime.index.graph import GraphFile, build, open_walker, walk
from edgeclip.runtime.index.scales import Scales, decode, encode, encode_queries, signs
from edgeclip.runtime.index.types import IndexSettings

Array = NDArray[Any]
Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Allowed = NDArray[np.bool_]

FACTS, IDS, GRAPH, SLOTS, VECTORS, SIGNS = (
    "facts.json", "ids.bin", "graph.usearch", "slots.bin", "vectors.bin", "signs.bin",
)  # fmt: skip
FORMAT = 1
# A walk that must give n rows takes about as long as 10 n comparisons; so few allowed rows are compared one by one.
_WALK = 10
_HOLES = 256  # rows of an exact segment that may be gone before every row left is compared by numpy, which takes twice as long


def write_segment(
    folder: Path,
    ids: Rows,
    vectors: Array,
    settings: IndexSettings,
    scales: Scales | None = None,
    *,
    grow_from: Segment | None = None,
    threads: int | None = None,
) -> None:
    """Write everything of a segment but its records.

    Args:
        folder: there, and empty of these files.
        ids: (N,) ascending.
        vectors: (N, D) float unit rows.
        scales: of the index; fp16 has none.
        grow_from: a segment with a graph, of the same index; where all its ids are among these, only the others are linked in.
        threads: that link vectors; None: all cores. With one, the same vectors give the same files.
    Raises:
        InputError: shapes that do not fit, ids that do not ascend, vectors that are not finite.
    """
    ids, rows = np.asarray(ids, np.int64), np.asarray(vectors, np.float32)
    if rows.ndim != 2 or ids.shape != (len(rows),):
        raise InputError(f"segment: expected (N,) ids and (N, D) vectors, got {ids.shape} and {rows.shape}.")
    if (np.diff(ids) <= 0).any() or not np.isfinite(rows).all():
        raise InputError("segment: expected ids that ascend and vectors that are finite.")
    precision = settings.precision
    graph = len(ids) > settings.exact_below and flat.usearch() is not None
    stored = encode(rows, precision, scales)
    sieve = signs(rows, scales) if precision == "bits" else None
    ids.tofile(folder / IDS)
    if not graph or sieve is not None:
        stored.tofile(folder / VECTORS)
    slots = False
    if graph:
        codes = stored if sieve is None else sieve
        grown = _grown(grow_from, ids, settings)
        build(folder / GRAPH, ids, codes, rows.shape[1], settings, grown, threads or 0)
        slots = _write_slots(folder, ids, rows.shape[1], settings)
    elif sieve is not None:
        sieve.tofile(folder / SIGNS)
    facts = {
        "format": FORMAT, "kind": "graph" if graph else "exact", "precision": precision,
        "count": len(ids), "dim": rows.shape[1], "slots": slots,
    }  # fmt: skip
    (folder / FACTS).write_text(json.dumps(facts) + "\n")


def _grown(segment: Segment | None, ids: Rows, settings: IndexSettings) -> GraphFile | None:
    """The graph to begin with, if it is of use."""
    file = segment.graph if segment else None
    if (
        segment is None
        or file is None
        or file.precision != settings.precision
        or file.links != settings.connectivity
    ):
        return None
    return file if np.isin(segment.ids, ids, assume_unique=True).all() else None


def _write_slots(folder: Path, ids: Rows, dim: int, settings: IndexSettings) -> bool:
    keys = GraphFile.open(folder / GRAPH, len(ids), dim, settings.precision).keys()
    if (keys == ids).all():
        return False
    slots = np.argsort(keys).astype(np.uint32)
    assert (keys[slots] == ids).all(), "usearch wrote other keys than it was given"
    slots.tofile(folder / SLOTS)
    return True


class Segment:
    """One that was written; its files are mapped. Searches may run in several threads. See `open`."""

    def __init__(
        self,
        ids: Rows,
        dim: int,
        settings: IndexSettings,
        scales: Scales | None,
        *,
        stored: Array,
        signs: NDArray[np.uint8] | None = None,
        graph: GraphFile | None = None,
        slots: NDArray[np.uint32] | None = None,
    ) -> None:
        self.ids, self.dim, self._settings, self._scales = ids, dim, settings, scales
        self._stored, self._signs, self.graph, self._slots = stored, signs, graph, slots

    @classmethod
    def open(cls, folder: Path, dim: int, settings: IndexSettings, scales: Scales | None) -> Segment:
        """Map the files of a segment.

        Raises:
            InputError: a file is missing, or sizes do not agree: it is damaged.
        """
        facts = _facts(folder, dim, settings)
        count, bits = facts["count"], settings.precision == "bits"
        ids = _mapped(folder / IDS, np.int64, (count,))
        if count and (ids[-1] < ids[0] or ids[0] < 0):
            raise InputError(f"{folder / IDS}: damaged: ids do not ascend. Build the index again.")
        graph = sieve = slots = None
        if facts["kind"] == "graph":
            graph = GraphFile.open(folder / GRAPH, count, dim, settings.precision)
            sieve = graph.codes if bits else None
            slots = _mapped(folder / SLOTS, np.uint32, (count,)) if facts["slots"] else None
        elif bits:
            sieve = _mapped(folder / SIGNS, np.uint8, (count, -(-dim // 8)))
        if slots is not None and slots.max() >= count:
            raise InputError(f"{folder / SLOTS}: damaged: a slot that is not there. Build the index again.")
        kind = np.int8 if settings.precision == "int8" else np.float16
        stored = graph.codes if graph and not bits else _mapped(folder / VECTORS, kind, (count, dim))
        return cls(ids, dim, settings, scales, stored=stored, signs=sieve, graph=graph, slots=slots)

    @property
    def count(self) -> int:
        """Rows, also those whose items are gone by now."""
        return len(self.ids)

    @property
    def kind(self) -> str:
        """ "exact" or "graph"."""
        return "exact" if self.graph is None else "graph"

    def close(self) -> None:
        """Give up the files."""
        self.__dict__.pop("_walker", None)
        empty = np.empty((0, self.dim))
        self.ids, self._stored, self._signs, self.graph, self._slots = (
            np.empty(0, np.int64),
            empty,
            None,
            None,
            None,
        )

    def vectors(self, rows: Rows | None = None) -> Vectors:
        """(n, D) float32 unit rows, as stored: of these rows, or all."""
        if rows is None:
            rows = np.arange(self.count)
        return decode(self._stored[self._places(np.asarray(rows, np.int64))], self._scales)

    def search(
        self,
        queries: Array,
        k: int,
        *,
        allowed: Allowed | None = None,
        exact: bool = False,
        expansion: int | None = None,
    ) -> tuple[Rows, Vectors]:
        """The k nearest rows of each query.

        Args:
            queries: (Q, D) float, of any length but 0.
            allowed: (N,) rows that may be found; None: all.
            exact: compare every stored vector in float32.
            expansion: of the walk, in place of the settings'.
        Returns:
            (Q, k) rows and cosines with the stored rows (of fp16 within 1e-3 of the true ones), best first; -1 and -inf
            where fewer are allowed.
        Raises:
            InputError: NaN, another width, k below 1, or a graph that is damaged.
        """
        asked = checked_queries(queries, self.dim, k)
        if allowed is not None and allowed.shape != (self.count,):
            raise InputError(f"allowed: expected one for each of {self.count} rows, got {allowed.shape}.")
        free = self.count if allowed is None else int(np.count_nonzero(allowed))
        if not free or not len(asked):
            return padded(np.empty((len(asked), 0), np.int64), np.empty((len(asked), 0), np.float32), k)
        if exact or not self._worth_it(free, k):
            return padded(*self._scan(asked, k, allowed), k)
        rows, scores = self._quick(
            asked, k, allowed, free, self._settings.expansion_search if expansion is None else expansion
        )
        if len(short := np.flatnonzero((rows[:, : min(k, free)] < 0).any(axis=1))):
            rows[short], scores[short] = padded(*self._scan(asked[short], k, allowed), rows.shape[1])
        return padded(rows, scores, k)

    def _worth_it(self, free: int, k: int) -> bool:
        """Whether candidates among all rows come sooner than a comparison with each row that is allowed."""
        if free == self.count or self.count <= k:
            return self.count > k
        if self._walker is None and self._signs is None:
            return self.count - free <= _HOLES
        return free * free > _WALK * k * self.count

    def _quick(
        self, asked: Vectors, k: int, allowed: Allowed | None, free: int, expansion: int
    ) -> tuple[Rows, Vectors]:
        """Rough candidates, then their cosines."""
        spare = k + flat.SPARE
        wanted = {"fp16": spare, "int8": 4 * spare, "bits": self._settings.oversample * k}[
            self._settings.precision
        ]
        if self._walker is None and self._signs is None:
            wanted += self.count - free
        elif allowed is not None:
            wanted = int(1.25 * wanted * self.count / free)
        rows = self._candidates(asked, min(self.count, max(wanted, k)), expansion)
        if allowed is not None:
            rows = np.where((rows >= 0) & allowed[rows], rows, -1)
        return flat.rescore(self._stored, self._scales, asked, rows, k, self._slots_of_stored)

    def _candidates(self, asked: Vectors, wanted: int, expansion: int) -> Rows:
        """(Q, C) rows near each query, as far as codes tell; -1 where fewer came."""
        if self._signs is not None:
            codes: Array = signs(asked, self._scales)
        else:
            codes = encode_queries(asked, self._settings.precision, self._scales)
        if self._walker is not None:
            keys = walk(self._walker, codes, wanted, max(wanted, expansion))
            return self._rows_of_ids(keys)
        if self._signs is not None:
            return self._rows(flat.sieve(self._signs, codes, wanted))
        return self._rows(flat.candidates(self._stored, self._scales, asked, codes, wanted))

    def _scan(self, asked: Vectors, k: int, allowed: Allowed | None) -> tuple[Rows, Vectors]:
        """Every row, or every one that is allowed, in float32."""
        places = None
        if allowed is not None:
            places = self._places(np.flatnonzero(allowed))
            places = places if self._slots_of_stored is None else np.sort(places)  # as they lie on disk
        found, scores = flat.scan(self._stored, self._scales, asked, k, places)
        return (found if self._slots_of_stored is None else self._rows(found)), scores

    @cached_property
    def _walker(self) -> Any:
        """usearch's index, or None: made at the first search, since it looks at every link."""
        if self.graph is None or flat.usearch() is None:
            return None
        keys = self.graph.keys()
        if not np.array_equal(keys if self._slots is None else keys[self._slots], self.ids):
            raise InputError(
                f"{self.graph.path}: damaged: holds other ids than {IDS}. Build the index again."
            )
        return open_walker(self.graph, self._settings)

    @property
    def _slots_of_stored(self) -> NDArray[np.uint32] | None:
        """Places of rows among the stored codes, where they are not in order: "bits" store theirs beside the graph."""
        return None if self._settings.precision == "bits" else self._slots

    def _places(self, rows: Rows) -> Rows:
        slots = self._slots_of_stored
        return rows if slots is None else slots[rows].astype(np.int64)

    @cached_property
    def _rows_at(self) -> Rows:
        """(N,) the row in each slot."""
        assert self._slots is not None
        rows = np.empty(self.count, np.int64)
        rows[self._slots] = np.arange(self.count)
        return rows

    def _rows(self, places: Rows) -> Rows:
        return places if self._slots is None else self._rows_at[places]

    def _rows_of_ids(self, ids: Rows) -> Rows:
        """Of ids that are all there, or -1."""
        if self._dense:
            return np.where(ids < 0, -1, ids - self.ids[0])
        return np.where(ids < 0, -1, np.searchsorted(self.ids, ids))

    @cached_property
    def _dense(self) -> bool:
        """Whether ids follow one another without a gap, as they do until something is removed."""
        return int(self.ids[-1] - self.ids[0]) == self.count - 1


def search_rows(
    vectors: Vectors, queries: Array, k: int, allowed: Allowed | None = None
) -> tuple[Rows, Vectors]:
    """`Segment.search` over (N, D) float32 unit rows in memory."""
    asked = checked_queries(queries, vectors.shape[1], k)
    return padded(
        *flat.scan(vectors, None, asked, k, None if allowed is None else np.flatnonzero(allowed)), k
    )


def checked_queries(queries: Array, dim: int, k: int) -> Vectors:
    """(Q, D) float32 unit rows. Raises InputError for what cannot be asked."""
    if k < 1:
        raise InputError(f"k: expected 1 or more, got {k}.")
    asked = np.asarray(queries, np.float32)
    if asked.ndim != 2 or asked.shape[1] != dim:
        raise InputError(f"queries: expected (Q, {dim}) vectors, got {asked.shape}.")
    length = np.sqrt(np.einsum("qd,qd->q", asked, asked))[:, None]
    if not (np.isfinite(length) & (length > 0)).all():
        raise InputError(
            "queries: expected finite vectors of a length above 0. One holds NaN or infinity, or is zero."
        )
    return asked / length  # type: ignore[no-any-return]


def padded(rows: Rows, scores: Vectors, k: int) -> tuple[Rows, Vectors]:
    """(Q, K) filled up to (Q, k) with -1 and -inf."""
    if (lack := k - rows.shape[1]) <= 0:
        return rows, scores
    shape = ((0, 0), (0, lack))
    return np.pad(rows, shape, constant_values=-1), np.pad(scores, shape, constant_values=-np.inf)


def recall(found: Rows, truth: Rows) -> float:
    """Share of the true neighbours, (Q, k) rows or ids each, that were found; -1 stands for none."""
    hits = sum(
        len(set(a[a >= 0].tolist()) & set(b[b >= 0].tolist())) for a, b in zip(found, truth, strict=True)
    )
    return hits / max(1, int((truth >= 0).sum()))


def _facts(folder: Path, dim: int, settings: IndexSettings) -> Mapping[str, Any]:
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text())
        found = {name: kind(facts[name]) for name, kind in
                 {"format": int, "kind": str, "precision": str, "count": int, "dim": int, "slots": bool}.items()}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r}). Build the index again.") from error
    wanted = {"format": FORMAT, "precision": settings.precision, "dim": dim}
    for name, value in wanted.items():
        if found[name] != value:
            raise InputError(
                f"{path}: {name}: expected {value}, got {found[name]}. It belongs to another index."
            )
    if found["kind"] not in ("exact", "graph") or found["count"] < (found["kind"] == "graph"):
        raise InputError(
            f"{path}: damaged (kind {found['kind']!r}, {found['count']} rows). Build the index again."
        )
    return found


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> Array:
    """A file of exactly this many numbers. Raises InputError for another size."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        came = path.stat().st_size
        if came != size:
            raise InputError(f"{path}: damaged: expected {size} bytes, got {came}. Build the index again.")
        # A plain array of the mapped bytes: np.memmap's own class makes each look-up several times slower.
        return np.asarray(np.memmap(path, dtype, mode="r", shape=shape)) if size else np.empty(shape, dtype)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}). Build the index again.") from error
