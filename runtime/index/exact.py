"""Every vector compared: no graph, no miss. usearch does it fastest for one query, numpy for many and where usearch is not there."""

from __future__ import annotations

import logging
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.runtime.codecs.nearest import best, floats, hamming
from edgeclip.runtime.index.scales import Scales, decode

Array = NDArray[Any]
Vectors = NDArray[np.float32]
Places = NDArray[np.int64]

_SCORES = 1 << 24  # held at once: 64 MB
_CELLS = 1 << 20  # made floats at once: they stay in the processor's cache
_GATHERED = 1 << 22  # components of candidates made floats at once
_MANY = 32  # queries from which numpy is no slower than usearch: 71 against 74 ms over 20,000 x 512; of 400, 297 against 1141
SPARE = 6  # candidates beyond k: rounded arithmetic may put the k-th a little further down

log = logging.getLogger(__name__)


@lru_cache
def usearch() -> ModuleType | None:
    """The module, or None, which is told once."""
    try:
        import usearch.index as module
    except ImportError:
        log.warning(
            "usearch is not installed: every vector is compared, by numpy. pip install 'edgeclip[index]'"
        )
        return None
    return module


def scan(
    codes: Array, scales: Scales | None, queries: Vectors, k: int, places: Places | None = None
) -> tuple[Places, Vectors]:
    """The k nearest of all stored rows, or of those at `places`, in float32.

    Args:
        codes: (N, D) as `scales.encode` gives them, or float32 unit rows.
        queries: (Q, D) float32 unit rows.
        places: (n,) ascending.
    Returns:
        (Q, K) places and cosines, best first, of equal ones the lower place; K = min(k, n).
    """
    count = len(codes) if places is None else len(places)
    most = max(1, _SCORES // max(1, count))
    found = [
        best(_cosines(codes, scales, queries[start : start + most], places), k)
        for start in range(0, len(queries), most)
    ]
    shape = (0, min(k, count))
    where = np.concatenate([np.empty(shape, np.int64), *(one for one, _ in found)])
    scores = np.concatenate([np.empty(shape, np.float32), *(one for _, one in found)])
    return where if places is None else places[where], scores


def _cosines(codes: Array, scales: Scales | None, queries: Vectors, places: Places | None) -> Vectors:
    """(Q, n), rows made floats block by block."""
    count = len(codes) if places is None else len(places)
    out = np.empty((len(queries), count), np.float32)
    step = max(1, _CELLS // max(1, codes.shape[1]))
    for start in range(0, count, step):
        block = codes[start : start + step] if places is None else codes[places[start : start + step]]
        rows = block if block.dtype == np.float32 else decode(block, scales)
        np.matmul(queries, rows.T, out=out[:, start : start + step])
    return out


def candidates(codes: Array, scales: Scales | None, queries: Vectors, asked: Array, count: int) -> Places:
    """(Q, min(count, N)) places of the nearest stored rows, as fast as this machine finds them: by codes, or else by `scan`.

    Args:
        asked: the queries as codes.
    """
    count = min(count, len(codes))
    if (module := usearch()) is None or len(queries) >= _MANY or count == len(codes):
        return scan(codes, scales, queries, count)[0]
    kind = module.MetricKind.L2sq if codes.dtype == np.int8 else module.MetricKind.IP
    found = module.search(codes, asked, count, kind, exact=True)
    return np.atleast_2d(found.keys).astype(np.int64)


def sieve(signs: NDArray[np.uint8], asked: NDArray[np.uint8], count: int) -> Places:
    """(Q, min(count, N)) places of the fewest bits that differ, in no order."""
    count = min(count, len(signs))
    most = max(1, _SCORES // max(1, len(signs)))
    found = [np.empty((0, count), np.int64)]
    for start in range(0, len(asked), most):
        bits = hamming(asked[start : start + most], signs)
        part = np.argpartition(bits, count - 1, axis=1)[:, :count] if 0 < count < bits.shape[1] else None
        found.append(np.broadcast_to(np.arange(count), (len(bits), count)) if part is None else part)
    return np.concatenate(found)


def rescore(
    codes: Array,
    scales: Scales | None,
    queries: Vectors,
    rows: Places,
    k: int,
    slots: NDArray[np.uint32] | None = None,
) -> tuple[Places, Vectors]:
    """The k best of each query's own candidates, in float32.

    Args:
        rows: (Q, C) candidates, -1 where there are fewer.
        slots: (N,) places of rows among the codes; None: they lie in order.
    Returns:
        (Q, min(k, C)) rows and cosines, best first, of equal ones the lower row; -1 and -inf where there are fewer.
    """
    scores = np.empty(rows.shape, np.float32)
    most = max(1, _GATHERED // max(1, rows.shape[1] * codes.shape[1]))
    for start in range(0, len(queries), most):
        some = rows[start : start + most]
        held = np.take(codes, some if slots is None else slots[some], axis=0)
        if len(queries) == 1 and held.dtype == np.float16:  # a third of the time of what follows
            stored = floats(held[0])
            scores[0] = stored @ queries[0] / np.sqrt(np.einsum("cd,cd->c", stored, stored))
            break
        np.matmul(
            decode(held, scales),
            queries[start : start + most, :, None],
            out=scores[start : start + most, :, None],
        )
    scores[rows < 0] = -np.inf
    each, order = np.arange(len(rows))[:, None], np.lexsort((rows, -scores))[:, :k]
    return rows[each, order], scores[each, order]
