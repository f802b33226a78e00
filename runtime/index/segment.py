"""A segment: vectors that were written once, and their search.

Candidates come from a walk along a graph, from signs that differ least, or from a comparison of all codes, whichever the segment
has; then their cosines are worked out in float32 from the stored rows, so that scores and order do not depend on the way.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index import exact as flat
from edgeclip.runtime.index.graph import open_walker, walk
from edgeclip.runtime.index.scales import Scales, decode, encode_queries, signs
from edgeclip.runtime.index.segment_files import IDS, Files
from edgeclip.runtime.index.types import IndexSettings

Array = NDArray[Any]
Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Allowed = NDArray[np.bool_]

# A guess, not measured: a walk that must give n rows takes as long as 10 n comparisons. Fewer allowed rows are compared one by one.
_WALK = 10
_SIZED_FOR = 100_000  # nodes that the effort of the settings is meant for
_HOLES = 256  # rows of an exact segment that may be gone before every row left is compared by numpy, which takes twice as long


class Segment:
    """One that was written; its files are mapped. Searches may run in several threads. See `open`."""

    def __init__(self, files: Files, dim: int, settings: IndexSettings, scales: Scales | None) -> None:
        self.ids, self.graph, self.dim = files.ids, files.graph, dim
        self._stored, self._signs, self._slots = files.stored, files.signs, files.slots
        self._settings, self._scales, self.narrow = settings, scales, files.narrow

    @classmethod
    def open(cls, folder: Path, dim: int, settings: IndexSettings, scales: Scales | None) -> Segment:
        """Map the files of a segment. Raises InputError: one is missing, or sizes do not agree: it is damaged."""
        return cls(Files.open(folder, dim, settings), dim, settings, scales)

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
        self.ids, self._stored, self.graph = np.empty(0, np.int64), np.empty((0, self.dim)), None
        self._signs = self._slots = None

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
        rows, scores, enough = self._quick(
            asked, k, allowed, free, self._expansion() if expansion is None else expansion
        )
        if len(short := np.flatnonzero(~enough)):
            rows[short], scores[short] = padded(*self._scan(asked[short], k, allowed), rows.shape[1])
        return padded(rows, scores, k)

    def _expansion(self) -> int:
        """The settings' effort, more for a large graph: 64 finds 0.99 of the ten nearest among 100,000, and 0.93 among 1,000,000."""
        return int(self._settings.expansion_search * max(1.0, self.count / _SIZED_FOR) ** 0.7)

    def _worth_it(self, free: int, k: int) -> bool:
        """Whether candidates among all rows come sooner than a comparison with each row that is allowed."""
        if free == self.count or self.count <= k:
            return self.count > k
        if self._walker is None and self._signs is None:
            return self.count - free <= _HOLES
        return free * free > _WALK * k * self.count

    def _quick(
        self, asked: Vectors, k: int, allowed: Allowed | None, free: int, expansion: int
    ) -> tuple[Rows, Vectors, NDArray[np.bool_]]:
        """Rough candidates, then their cosines; and of each query whether they were enough.

        Where a filter leaves out what lies near a query, the few candidates that it lets pass are not the best of those it allows.
        """
        spare = k + flat.SPARE
        rough = {"fp16": spare, "int8": 4 * spare, "bits": self._settings.oversample * k}
        # few directions rank roughly: among 1,000,000 the ten nearest do not lie among the first 48
        narrow = max(3 * spare, 3 * expansion // 4)
        least = wanted = narrow if self.narrow else rough[self._settings.precision]
        if self._walker is None and self._signs is None:
            wanted += self.count - free
        elif allowed is not None:
            wanted = int(1.25 * wanted * self.count / free)
        rows = self._candidates(asked, min(self.count, max(wanted, k)), expansion)
        if allowed is None:
            enough = np.asarray((rows[:, : min(k, free)] >= 0).all(axis=1))
        else:
            rows = np.where((rows >= 0) & allowed[rows], rows, -1)
            enough = np.asarray((rows >= 0).sum(axis=1) >= min(least, free))
        return *flat.rescore(self._stored, self._scales, asked, rows, k, self._slots_of_stored), enough

    def _candidates(self, asked: Vectors, wanted: int, expansion: int) -> Rows:
        """(Q, C) rows near each query, as far as codes tell; -1 where fewer came."""
        if self._signs is not None:
            codes: Array = signs(asked, self._scales)
        elif self._walker is not None and self.narrow is not None:
            codes = self.narrow.codes(asked)
        else:
            codes = encode_queries(asked, self._settings.precision, self._scales)
        if self._walker is not None:
            keys = walk(self._walker, codes, wanted, max(wanted, expansion))
            return self._rows_of_ids(keys)
        if self._signs is not None:
            return self._rows(flat.sieve(self._signs, codes, wanted))
        found = flat.candidates(self._stored, self._scales, asked, codes, wanted)
        return found if self._slots_of_stored is None else self._rows(found)

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
        """Places of rows among what is stored, where they are not in order: rows that lie beside a graph are."""
        return None if self._settings.precision == "bits" or self.narrow else self._slots

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
