"""A graph of near neighbours (HNSW) in usearch's file, which is looked through before usearch, which trusts it, may walk it.

The file begins with the matrix of codes, so that it serves as the vectors' store as well: nothing lies twice on disk. What
follows, as far as it must be known here (little endian):

    rows, bytes of a row   2 x uint32, then the rows themselves, in the order of their slots
    head                   64 bytes: b"usearch", version 3 x uint16, metric, scalar, key and slot kinds, present, removed, dimensions
    shape                  5 x uint64: nodes, links of a node on a level, on the lowest level, highest level, first node
    levels                 int16 of each node
    nodes                  of each node: key uint64, level int16, and of each level a count uint32 and places for its links uint32
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.types import IndexSettings, Precision

Array = NDArray[Any]
Places = NDArray[np.int64]

# What is compared: inner products of halves, distances of bytes that had the mean taken off, bits that differ.
KINDS: dict[Precision, tuple[str, str]] = {
    "fp16": ("ip", "f16"),
    "int8": ("l2sq", "i8"),
    "bits": ("hamming", "b1"),
}
_DTYPES: dict[Precision, type[np.generic]] = {"fp16": np.float16, "int8": np.int8, "bits": np.uint8}
_HEAD, _HEAD_SIZE = struct.Struct("<7s3H4B3Q?"), 64
_SHAPE = struct.Struct("<5Q")
_NODE = 8 + 2  # key and level
_CHECKED = 1 << 16  # nodes at once


@dataclass(frozen=True, eq=False)
class GraphFile:
    """A file whose sizes agree with one another; `check_links` proves the rest."""

    path: Path
    data: NDArray[np.uint8]  # all of it, mapped
    count: int
    dim: int
    width: int  # bytes of a row
    links: int  # of a node on a level above the lowest
    links_below: int
    first: int  # node at which a walk begins
    top: int  # its level
    precision: Precision

    @classmethod
    def open(cls, path: Path, count: int, dim: int, precision: Precision) -> GraphFile:
        """Map it and compare its sizes with each other and with what they must be.

        Raises:
            InputError: anything that does not agree.
        """
        try:
            data = np.asarray(np.memmap(path, np.uint8, mode="r"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error}). Build the index again.") from error
        width = code_bytes(precision, dim)
        head = 8 + count * width
        shape = head + _HEAD_SIZE
        _want(path, "length", len(data) >= shape + _SHAPE.size + count * (2 + _NODE), len(data))
        _want(path, "matrix", (came := struct.unpack_from("<2I", data.data)) == (count, width), came)
        magic, *kinds, present, removed, wide, multi = _HEAD.unpack_from(data.data, head)
        _want(path, "head", (magic, kinds[3:5]) == (b"usearch", _kinds(precision)), (magic, kinds))
        nodes, links, links_below, top, first = _SHAPE.unpack_from(data.data, shape)
        counts = (present, removed, wide, multi, nodes)
        _want(path, "counts", counts == (count, 0, dim, False, count) and first < count, (*counts, first))
        _want(path, "links", 0 < links <= links_below < 1 << 16, (links, links_below))
        found = cls(path, data, count, dim, width, links, links_below, first, top, precision)
        _want(path, "levels", found.levels.min() >= 0 and found.levels[first] == top, top)
        _want(path, "length", found.offsets[-1] + found.sizes[-1] == len(data), len(data))
        return found

    @property
    def codes(self) -> Array:
        """(N, ...) stored rows in the order of their slots, mapped."""
        return (
            self.data[8 : 8 + self.count * self.width].view(_DTYPES[self.precision]).reshape(self.count, -1)
        )

    @property
    def _graph(self) -> int:
        return 8 + self.count * self.width + _HEAD_SIZE + _SHAPE.size

    @property
    def levels(self) -> NDArray[np.int16]:
        """(N,) of each slot."""
        return self.data[self._graph : self._graph + 2 * self.count].view("<i2")

    @property
    def sizes(self) -> Places:
        """(N,) bytes of each node."""
        below, above = 4 + 4 * self.links_below, 4 + 4 * self.links
        return _NODE + below + self.levels.astype(np.int64) * above

    @cached_property
    def offsets(self) -> Places:
        """(N,) where each node begins."""
        sizes = self.sizes
        return self._graph + 2 * self.count + np.cumsum(sizes) - sizes

    def _pieces(self, offsets: Places, size: int) -> NDArray[np.uint8]:
        """(n, size) bytes from each offset on."""
        every = np.ndarray((len(self.data) - size + 1,), f"V{size}", self.data.data, strides=(1,))
        pieces: NDArray[np.uint8] = every[offsets].view(np.uint8).reshape(len(offsets), size)
        return pieces

    def keys(self) -> Places:
        """(N,) of each slot."""
        return self._pieces(self.offsets, 8).view("<i8")[:, 0]

    def check_links(self) -> None:
        """Prove that no link leaves the graph, that is, that a walk stays in the file: 50 to 80 ms for 100,000 nodes on a busy machine.

        Raises:
            InputError: one that does.
        """
        for start in range(0, self.count, _CHECKED):
            levels, offsets = self.levels[start : start + _CHECKED], self.offsets[start : start + _CHECKED]
            head = self._pieces(offsets + 8, 2).view("<i2")[:, 0]
            _want(self.path, "levels", bool((head == levels).all()), "two that differ")
            self._check(offsets + _NODE, self.links_below, 0)
            for level in range(1, int(levels.max(initial=0)) + 1):
                above = offsets[levels >= level] + _NODE + 4 + 4 * self.links_below
                self._check(above + (level - 1) * (4 + 4 * self.links), self.links, level)

    def _check(self, offsets: Places, most: int, level: int) -> None:
        table = self._pieces(offsets, 4 + 4 * most).view("<u4")
        used = np.arange(most) < table[:, :1]
        linked = table[:, 1:][used]
        fine = table[:, 0].max(initial=0) <= most and linked.max(initial=0) < self.count
        _want(self.path, "links", bool(fine), f"one that leaves the graph on level {level}")
        if level:  # a walk reads the links of this level of whatever it comes to
            _want(
                self.path,
                "links",
                bool((self.levels[linked] >= level).all()),
                f"one to a node below level {level}",
            )


def code_bytes(precision: Precision, dim: int) -> int:
    """Bytes of a row that the graph compares."""
    return -(-dim // 8) if precision == "bits" else dim * np.dtype(_DTYPES[precision]).itemsize


def _kinds(precision: Precision) -> list[int]:
    """usearch's numbers of a metric and a scalar."""
    metric, scalar = KINDS[precision]
    return [{"ip": 105, "l2sq": 101, "hamming": 98}[metric], {"f16": 12, "i8": 23, "b1": 1}[scalar]]


def _want(path: Path, what: str, fine: bool | np.bool_, came: object) -> None:
    if not fine:
        raise InputError(f"{path}: damaged: {what} not as the rest says (got {came}). Build the index again.")


def open_walker(file: GraphFile, settings: IndexSettings) -> Any:
    """usearch's index of a file that is mapped, after `check_links`. The module must be there."""
    from usearch.index import Index

    file.check_links()
    metric, scalar = KINDS[file.precision]
    index = Index(
        ndim=file.dim, metric=metric, dtype=scalar, connectivity=file.links,
        expansion_search=settings.expansion_search, enable_key_lookups=False,
    )  # fmt: skip
    index.view(file.data.data)  # these bytes and no others, also where the file's name is gone
    return index


def build(
    path: Path,
    keys: Places,
    codes: Array,
    dim: int,
    precision: Precision,
    settings: IndexSettings,
    grow_from: GraphFile | None,
    threads: int,
) -> None:
    """Write a graph of these rows.

    Args:
        precision: of the codes.
        keys: (N,) ids of the rows; of the rows of `grow_from` the same as there.
        grow_from: a graph that some of the rows form already: only the others are linked in.
        threads: 0 is all cores; with one the same rows give the same file.
    """
    from usearch.index import Index

    metric, scalar = KINDS[precision]
    index = Index(
        ndim=dim, metric=metric, dtype=scalar, connectivity=settings.connectivity,
        expansion_add=settings.expansion_add, enable_key_lookups=False,
    )  # fmt: skip
    if grow_from is not None:
        grow_from.check_links()
        index.load(str(grow_from.path))
        new = ~np.isin(keys, grow_from.keys())
        keys, codes = keys[new], codes[new]
    if len(keys):
        index.add(keys.astype(np.uint64), np.ascontiguousarray(codes), threads=threads)
    index.save(str(path))


def walk(walker: Any, codes: Array, count: int, expansion: int) -> Places:
    """(Q, count) keys near each query, nearest first; -1 where the walk came to fewer.

    Args:
        expansion: nodes that are kept in view; `count` or more.
    """
    found = walker.search(codes, expansion, threads=1 if len(codes) == 1 else 0)
    keys = np.atleast_2d(found.keys).astype(np.int64)[:, :count]
    if len(codes) > 1:
        keys[np.arange(keys.shape[1]) >= found.counts[:, None]] = -1
    return keys
