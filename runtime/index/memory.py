"""Vectors in memory, asked like an index: for a folder that is searched once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.filters import Filter, parse_filter
from edgeclip.runtime.index.records import TailRecords
from edgeclip.runtime.index.types import Hit, Item

Vectors = NDArray[np.float32]


class Memory:
    """What an `Index` answers, without files.

    Args:
        vectors: (N, D) float32 unit rows.
        items: N of them; an item's number is its id.
    """

    def __init__(self, vectors: Vectors, items: Sequence[Item]) -> None:
        self._vectors, self._items = vectors, list(items)
        self._rows = {item.key: row for row, item in enumerate(self._items)}

    def __len__(self) -> int:
        return len(self._items)

    def search(
        self,
        query: NDArray[Any],
        k: int = 10,
        *,
        where: Filter | str | Mapping[str, Any] | None = None,
        threshold: float | None = None,
        exact: bool = True,
    ) -> list[Hit]:
        """The k items nearest to a (D,) vector, as `Index.search` gives them; `exact` makes no difference here."""
        scores = self._vectors @ np.asarray(query, np.float32)
        good = np.ones(len(self), bool) if threshold is None else scores >= threshold
        if where is not None:
            good &= TailRecords(self._items).where(parse_filter(where))
        rows = np.flatnonzero(good)
        best = rows[np.argsort(-scores[rows], kind="stable")[:k]]
        return [Hit(self._items[i].key, float(scores[i]), i, self._items[i].record) for i in map(int, best)]

    def get(self, keys: Sequence[str]) -> dict[str, Item]:
        """Key -> item, of those that are there."""
        return {key: self._items[self._rows[key]] for key in keys if key in self._rows}

    def batches(self, size: int = 4096) -> Iterator[tuple[NDArray[np.int64], Vectors, list[Item]]]:
        """All items as (n,) ids, (n, D) vectors and n items."""
        for start in range(0, len(self), size):
            some = slice(start, start + size)
            yield np.arange(len(self))[some], self._vectors[some], self._items[some]

    def vectors(self, keys: Sequence[str]) -> Vectors:
        """(N, D) vectors of these keys. Raises InputError for a key that is not there."""
        if missing := [key for key in keys if key not in self._rows]:
            raise InputError(f"no item {missing[0]!r} among {len(self)} pictures.")
        return self._vectors[[self._rows[key] for key in keys]]
