"""The ways to store a unit vector. Each offers encode, decode and scores; `search` is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.codecs.nearest import best, hamming, products

Array = NDArray[Any]
Vectors = NDArray[np.float32]
Kind = Literal["image", "text"]

OVERSAMPLING = (
    10  # 1-bit candidates for each result; at 10 their rescored recall was 0.92 to 1.00, at 4 0.79 to 0.99
)
_SCORES = 1 << 24  # held at once


@dataclass(frozen=True, eq=False)
class Codec(ABC):
    """One way to store unit vectors."""

    name: str
    dim: int  # D of the vectors that it takes

    @property
    def nbytes(self) -> int:
        """Bytes of one stored vector."""
        return self.encode(np.eye(1, self.dim, dtype=np.float32)).nbytes

    @abstractmethod
    def encode(self, vectors: Array) -> Array:
        """(N, D) float unit rows to store -> (N, width) codes. Raises InputError for another width, NaN, or another length."""

    @abstractmethod
    def decode(self, codes: Array) -> Vectors:
        """(N, width) codes -> (N, D) float32: about the vectors that they came from, not of unit length."""

    @abstractmethod
    def scores(self, queries: Array, codes: Array, *, asking: Kind = "image") -> Vectors:
        """(Q, D) unit rows against N codes -> (Q, N) float32, higher is nearer; up to a constant for each query.

        Args:
            asking: what the queries are; only 1-bit codes make a difference.
        """

    def search(
        self,
        queries: Array,
        k: int,
        codes: Array,
        *,
        asking: Kind = "image",
        rescore: tuple[Codec, Array] | None = None,
        oversampling: int = OVERSAMPLING,
    ) -> tuple[NDArray[np.int64], Vectors]:
        """The best k of all codes for each query, by a full scan.

        Args:
            queries: (Q, D) float unit rows, or one (D,).
            codes: (N, width), as `encode` gives them.
            asking: as for `scores`.
            rescore: a finer codec and its codes of the same vectors: k * oversampling candidates are ranked again by it.
        Returns:
            rows of `codes` (Q, K) and their scores (Q, K), best first, K = min(k, N); of equal scores the lower row comes first.
        Raises:
            InputError: k below 1, queries or codes of another width, or rescoring codes of another number.
        """
        if k < 1 or oversampling < 1:
            raise InputError(f"search: expected k and oversampling of 1 or more, got {k} and {oversampling}.")
        if rescore is not None and len(rescore[1]) != len(codes):
            raise InputError(f"rescore: expected {len(codes)} codes, one for each, got {len(rescore[1])}.")
        queries = check_vectors(np.atleast_2d(queries), self.dim, "queries")
        step = max(1, _SCORES // max(1, len(codes)))
        found = [
            self._search(queries[start : start + step], k, codes, asking, rescore, oversampling)
            for start in range(0, len(queries), step)
        ]
        shape = (0, min(k, len(codes)))
        rows = [np.empty(shape, np.int64), *(rows for rows, _ in found)]
        scores = [np.empty(shape, np.float32), *(scores for _, scores in found)]
        return np.concatenate(rows), np.concatenate(scores)

    def _search(
        self,
        queries: Vectors,
        k: int,
        codes: Array,
        asking: Kind,
        rescore: tuple[Codec, Array] | None,
        oversampling: int,
    ) -> tuple[NDArray[np.int64], Vectors]:
        coarse = best(self.scores(queries, codes, asking=asking), k if rescore is None else k * oversampling)
        if rescore is None:
            return coarse
        finer, stored = rescore
        rows, scores = [], []
        for query, candidates in zip(queries, np.sort(coarse[0], axis=1), strict=True):
            place, score = best(finer.scores(query[None], stored[candidates], asking=asking), k)
            rows.append(candidates[place[0]])
            scores.append(score[0])
        return np.stack(rows), np.stack(scores)


@dataclass(frozen=True, eq=False)
class Half(Codec):
    """Every component in 16 bits."""

    def encode(self, vectors: Array) -> Array:
        """(N, D) float16."""
        return check_vectors(vectors, self.dim).astype(np.float16)

    def decode(self, codes: Array) -> Vectors:
        """(N, D) float32."""
        return _check_codes(self, codes, self.dim, np.float16).astype(np.float32)

    def scores(self, queries: Array, codes: Array, *, asking: Kind = "image") -> Vectors:
        """Cosines, within 1e-3."""
        _check_codes(self, codes, self.dim, np.float16)
        return products(check_vectors(queries, self.dim, "queries"), codes)


@dataclass(frozen=True, eq=False)
class Truncated(Codec):
    """The first d components, of unit length again (Matryoshka): any store that ranks by cosine takes them."""

    # (d, D) orthonormal rows, most important first, for models that were not trained to be cut; None: cut as they are
    rotation: Vectors | None
    width: int  # d

    def encode(self, vectors: Array) -> Array:
        """(N, d) float16, unit rows."""
        return self._cut(check_vectors(vectors, self.dim)).astype(np.float16)

    def decode(self, codes: Array) -> Vectors:
        """(N, D) float32, unit rows again: what was cut away is zero."""
        rows = _check_codes(self, codes, self.width, np.float16).astype(np.float32)
        return rows @ (
            np.eye(self.width, self.dim, dtype=np.float32) if self.rotation is None else self.rotation
        )

    def scores(self, queries: Array, codes: Array, *, asking: Kind = "image") -> Vectors:
        """Cosines of what is left."""
        _check_codes(self, codes, self.width, np.float16)
        return products(self._cut(check_vectors(queries, self.dim, "queries")), codes)

    def _cut(self, rows: Vectors) -> Vectors:
        cut = rows[:, : self.width] if self.rotation is None else rows @ self.rotation.T
        # A row that lies wholly in what is cut away stays zero: it is near nothing.
        found: Vectors = cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)
        return found


@dataclass(frozen=True, eq=False)
class Int8(Codec):
    """One byte a component, each dimension with its own mean and scale.

    One scale for all dimensions loses more: components of unit vectors lie near 1 / sqrt(D), but a few dimensions are far larger.
    """

    mean: Vectors  # (D,) of the stored kind
    scale: Vectors  # (D,) one step of a code, above 0

    def encode(self, vectors: Array) -> Array:
        """(N, D) int8 in -127..127; what passes the fitted range is cut to it."""
        steps = (check_vectors(vectors, self.dim) - self.mean) / self.scale
        codes: Array = np.clip(np.rint(steps), -127, 127).astype(np.int8)
        return codes

    def decode(self, codes: Array) -> Vectors:
        """(N, D) float32."""
        return _check_codes(self, codes, self.dim, np.int8).astype(np.float32) * self.scale + self.mean

    def scores(self, queries: Array, codes: Array, *, asking: Kind = "image") -> Vectors:
        """Cosines, with float queries: only the stored side is rounded."""
        _check_codes(self, codes, self.dim, np.int8)
        rows = check_vectors(queries, self.dim, "queries")
        return products(rows * self.scale, codes) + (rows @ self.mean)[:, None]

    def encode_queries(self, queries: Array) -> tuple[NDArray[np.int8], Vectors]:
        """For engines that multiply bytes with bytes: (Q, D) int8 and (Q, 1) float32, so that codes @ int8 * step ranks as cosines do.

        The stored side's scales are folded into the query, which then needs but one of its own.
        """
        rows = check_vectors(queries, self.dim, "queries") * self.scale
        step = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-12) / 127
        return np.rint(rows / step).astype(np.int8), step


@dataclass(frozen=True, eq=False)
class Bits(Codec):
    """One bit a component: on which side of the mean it lies. Rough alone; a sieve before a finer codec."""

    means: Mapping[Kind, Vectors]  # (D,) of each kind
    stored: Kind
    spread: Vectors  # (D,) mean distance from the mean, after the rotation: what a bit stands for
    rotation: Vectors | None  # (D, D) orthogonal, evens out what the bits carry; None: as they are

    def encode(self, vectors: Array) -> Array:
        """(N, ceil(D / 8)) uint8, the first component in the highest bit."""
        return self._pack(check_vectors(vectors, self.dim), self.stored)

    def decode(self, codes: Array) -> Vectors:
        """(N, D) float32."""
        _check_codes(self, codes, -(-self.dim // 8), np.uint8)
        signs: Vectors = np.unpackbits(codes, axis=1, count=self.dim).astype(np.float32) * 2 - 1
        rows: Vectors = signs * self.spread
        if self.rotation is not None:
            rows = rows @ self.rotation
        return rows + self.means[self.stored]

    def scores(self, queries: Array, codes: Array, *, asking: Kind = "image") -> Vectors:
        """1 - 2 h / D of the h bits that differ: 1 for equal codes, -1 for opposite ones."""
        if asking not in self.means:
            raise InputError(
                f"codec {self.name}: was fitted without vectors of kind {asking!r}, so such queries cannot be centred. "
                "Fit the codecs with both pictures and texts (`edgeclip codecs --texts`)."
            )
        _check_codes(self, codes, -(-self.dim // 8), np.uint8)
        rows = self._pack(check_vectors(queries, self.dim, "queries"), asking)
        agreement: Vectors = 1 - hamming(rows, codes).astype(np.float32) * np.float32(2 / self.dim)
        return agreement

    def _pack(self, rows: Vectors, kind: Kind) -> NDArray[np.uint8]:
        centred = rows - self.means[kind]
        return np.packbits((centred if self.rotation is None else centred @ self.rotation.T) > 0, axis=1)


def check_vectors(vectors: Array, dim: int, what: str = "vectors") -> Vectors:
    """The rows as float32. Raises InputError unless they are (N, dim) floats, finite and of unit length."""
    rows = np.asarray(vectors)
    if rows.ndim != 2 or rows.shape[1] != dim or rows.dtype.kind != "f":
        raise InputError(f"{what}: expected (N, {dim}) float unit rows, got {rows.shape} {rows.dtype}.")
    rows = rows.astype(np.float32, copy=False)
    norms = np.linalg.norm(rows, axis=1)
    if not np.all(np.abs(norms - 1) < 0.01):  # also catches NaN
        bad = int(np.flatnonzero(~(np.abs(norms - 1) < 0.01))[0])
        raise InputError(
            f"{what}[{bad}]: expected a row of length 1, got {norms[bad]:.4g}. Divide each row by its norm; drop those with NaN."
        )
    return rows


def _check_codes(codec: Codec, codes: Array, width: int, dtype: type) -> Array:
    if codes.ndim != 2 or codes.shape[1] != width or codes.dtype != dtype:
        raise InputError(
            f"codes: codec {codec.name} expects (N, {width}) {np.dtype(dtype)}, got {codes.shape} {codes.dtype}. "
            "Encode the vectors with this codec."
        )
    return codes
