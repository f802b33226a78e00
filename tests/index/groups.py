"""Vectors in memory that are grouped as an index would be, searched by plain numpy in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.runtime.index.components import InMemory
from edgeclip.runtime.index.types import Item


class Compared(InMemory):
    """Counts its searches; `blind` pairs (asking place, found place) are missed, as an approximate search misses some."""

    def __init__(
        self, vectors: NDArray[Any], records: Sequence[Mapping[str, Any]] = (), first: int = 0
    ) -> None:
        items = [Item(f"item {i}", records[i] if records else {}) for i in range(len(vectors))]
        super().__init__(np.arange(len(vectors)) * 3 + first, np.asarray(vectors, np.float32), items)
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "blind", set())

    asked: list[tuple[int, int]]  # (queries, k) of each search
    blind: set[tuple[int, int]]

    def search_ids(
        self, queries: NDArray[Any], k: int = 10, *, exact: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As InMemory's."""
        self.asked.append((len(queries), k))
        cosines = queries.astype(np.float64) @ self.vectors.T.astype(np.float64)
        for asking, found in self.blind:
            cosines[(queries == self.vectors[asking]).all(axis=1), found] = -2
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        ids, scores = self.ids[best], np.take_along_axis(cosines, best, axis=1)
        ids = np.where(scores > -2, ids, -1)
        wide = ((0, 0), (0, k - ids.shape[1]))  # as an index does where there are fewer
        return np.pad(ids, wide, constant_values=-1), np.pad(scores, wide, constant_values=-np.inf).astype(
            np.float32
        )


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def copies(originals: NDArray[Any], times: int, noise: float, seed: int = 0) -> NDArray[np.float32]:
    """`times` rows near each of the (N, D) originals."""
    random = np.random.default_rng(seed)
    rows = np.repeat(originals, times, axis=0)
    return unit(rows + noise * random.normal(size=rows.shape) / np.sqrt(rows.shape[1]))
