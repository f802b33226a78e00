"""The files of a segment, which are written once. Besides the records, of which this knows nothing:

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index import exact as flat
from edgeclip.runtime.index.graph import GraphFile, build
from edgeclip.runtime.index.narrow import Narrow, fit_narrow
from edgeclip.runtime.index.scales import Scales, encode, signs
from edgeclip.runtime.index.types import IndexSettings, Precision

if TYPE_CHECKING:
    from edgeclip.runtime.index.segment import Segment

Array = NDArray[Any]
Rows = NDArray[np.int64]

FACTS, IDS, GRAPH, SLOTS, NARROW, VECTORS, SIGNS = (
    "facts.json", "ids.bin", "graph.usearch", "slots.bin", "narrow.safetensors", "vectors.bin", "signs.bin",
)  # fmt: skip
FORMAT = 1


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
    narrow, slots = None, False
    if graph:
        old = _grown(grow_from, ids, settings)
        if precision == "fp16":
            narrow = old.narrow if old else fit_narrow(rows)
        codes, dim = (stored if sieve is None else sieve), rows.shape[1]
        walked: Precision = precision
        if narrow is not None:
            codes, walked, dim = narrow.codes(rows), "int8", narrow.dim
        build(folder / GRAPH, ids, codes, dim, walked, settings, old.graph if old else None, threads or 0)
        slots = _write_slots(folder, ids, dim, walked)
    if not graph or sieve is not None or narrow is not None:
        stored.tofile(folder / VECTORS)
    if sieve is not None and not graph:
        sieve.tofile(folder / SIGNS)
    if narrow is not None:
        (folder / NARROW).write_bytes(narrow.to_bytes())
    facts = {
        "format": FORMAT, "kind": "graph" if graph else "exact", "precision": precision, "count": len(ids),
        "dim": rows.shape[1], "slots": slots, "narrow": narrow.dim if narrow else 0,
    }  # fmt: skip
    (folder / FACTS).write_text(json.dumps(facts) + "\n")


def _grown(segment: Segment | None, ids: Rows, settings: IndexSettings) -> Segment | None:
    """The segment whose graph to begin with, if it is of use."""
    if segment is None or segment.graph is None or segment.graph.links != settings.connectivity:
        return None
    return segment if np.isin(segment.ids, ids, assume_unique=True).all() else None


def _write_slots(folder: Path, ids: Rows, dim: int, walked: Precision) -> bool:
    keys = GraphFile.open(folder / GRAPH, len(ids), dim, walked).keys()
    if (keys == ids).all():
        return False
    slots = np.argsort(keys).astype(np.uint32)
    assert (keys[slots] == ids).all(), "usearch wrote other keys than it was given"
    slots.tofile(folder / SLOTS)
    return True


@dataclass(frozen=True, eq=False)
class Files:
    """All of them, mapped."""

    ids: Rows
    stored: Array  # (N, D) float16 or int8: in the order of rows, or of slots
    signs: NDArray[np.uint8] | None  # (N, ceil(D / 8)), in the order of slots
    graph: GraphFile | None
    slots: NDArray[np.uint32] | None  # (N,) of each row; None: the rows are in order
    narrow: Narrow | None  # what the graph's codes mean, if they are not the stored rows themselves

    @classmethod
    def open(cls, folder: Path, dim: int, settings: IndexSettings) -> Files:
        """Map them and compare their sizes. Raises InputError: one is missing, or damaged."""
        facts = _facts(folder, dim, settings)
        count, bits = facts["count"], settings.precision == "bits"
        ids = _mapped(folder / IDS, np.int64, (count,))
        if count and (ids[-1] < ids[0] or ids[0] < 0):
            raise InputError(f"{folder / IDS}: damaged: ids do not ascend. Build the index again.")
        graph = sieve = slots = narrow = None
        if facts["kind"] == "graph":
            wide = facts["narrow"]
            narrow = _narrow(folder / NARROW, dim, wide) if wide else None
            graph = GraphFile.open(folder / GRAPH, count, wide or dim, "int8" if wide else settings.precision)
            sieve = graph.codes if bits else None
            slots = _mapped(folder / SLOTS, np.uint32, (count,)) if facts["slots"] else None
        elif bits:
            sieve = _mapped(folder / SIGNS, np.uint8, (count, -(-dim // 8)))
        if slots is not None and slots.max() >= count:
            raise InputError(f"{folder / SLOTS}: damaged: a slot that is not there. Build the index again.")
        kind = np.int8 if settings.precision == "int8" else np.float16
        if graph is not None and not bits and narrow is None:
            return cls(ids, graph.codes, sieve, graph, slots, narrow)
        stored = _mapped(folder / VECTORS, kind, (count, dim))
        return cls(ids, stored, sieve, graph, slots, narrow)


def _narrow(path: Path, dim: int, width: int) -> Narrow:
    try:
        return Narrow.from_bytes(path.read_bytes(), dim, width)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}). Build the index again.") from error
    except InputError as error:
        raise InputError(f"{path}: {error}. Build the index again.") from error


def _facts(folder: Path, dim: int, settings: IndexSettings) -> Mapping[str, Any]:
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text())
        found = {name: kind(facts[name]) for name, kind in
                 {"format": int, "kind": str, "precision": str, "count": int, "dim": int, "slots": bool, "narrow": int}.items()}  # fmt: skip
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
