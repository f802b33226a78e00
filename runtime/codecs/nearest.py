"""The arithmetic of a search among codes: numpy only, in pieces that fit the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Vectors = NDArray[np.float32]
_CELLS = 1 << 20  # turned into floats at once: 4 MB stay in the processor's cache, 32 MB took 4 times as long


def best(scores: Array, k: int) -> tuple[NDArray[np.int64], Vectors]:
    """The k highest of each row of (Q, N) scores, best first, and of equal ones the lowest column first: (Q, K) columns and scores."""
    k = min(k, scores.shape[1])
    columns = np.empty((len(scores), k), np.int64)
    for row, found in zip(scores, columns, strict=True):
        if not k:
            break
        least = np.partition(row, -k)[-k]
        above = np.flatnonzero(row > least)
        chosen = np.concatenate([above, np.flatnonzero(row == least)[: k - len(above)]])
        found[:] = chosen[np.lexsort((chosen, -row[chosen]))]
    return columns, np.take_along_axis(scores, columns, axis=1)


def hamming(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Bits that differ: (Q, B) and (N, B) packed rows -> (Q, N)."""
    left, right = (
        _words(a),
        np.ascontiguousarray(_words(b).T),
    )  # a column of words lies together: one pass each
    out = np.zeros((len(a), len(b)), np.int32)
    for query, total in zip(left, out, strict=True):
        for word, column in zip(query, right, strict=True):
            total += _count(word ^ column)
    return out


def _words(packed: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Rows filled up with zeros to whole 8-byte words."""
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)


_TABLE = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


def _table_count(words: NDArray[np.uint64]) -> Array:
    """What numpy.bitwise_count does, for numpy before 2.0: bits set in each of (N,) words."""
    counts: Array = _TABLE[words.view(np.uint16).reshape(-1, 4)].sum(axis=1, dtype=np.uint8)
    return counts


_count = getattr(np, "bitwise_count", _table_count)


def products(queries: Vectors, codes: Array) -> Vectors:
    """(Q, D) @ (N, D).T in float32; the codes become floats a block at a time."""
    out = np.empty((len(queries), len(codes)), np.float32)
    step = max(1, _CELLS // max(1, codes.shape[1]))
    for start in range(0, len(codes), step):
        np.matmul(queries, floats(codes[start : start + step]).T, out=out[:, start : start + step])
    return out


def floats(codes: Array) -> Vectors:
    """Codes as float32. Of float16 ones, which must be finite, by their bits: numpy's own cast took 8 times as long."""
    if codes.dtype != np.float16:
        return codes.astype(np.float32, copy=False)
    bits = np.ascontiguousarray(codes).view(np.int16).astype(np.int32)  # the sign fills the upper half
    bits <<= 13  # exponent and mantissa to where float32 has them
    bits &= np.int32(-0x70002000)  # one sign bit only
    found: Vectors = bits.view(np.float32)
    found *= np.float32(
        2.0**112
    )  # the exponents' offsets differ by 127 - 15; subnormal numbers come out right as well
    return found
