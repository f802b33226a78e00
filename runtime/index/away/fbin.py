"""An index as the big-ann benchmarks' vector files, and such files as vectors.

    pets.fbin            uint32 rows, uint32 width, then the vectors row by row; little-endian. .f16bin: fp16. .i8bin: int8
    pets.ids.i64bin      uint32 rows, uint32 1, then int64 ids: of row i the index's id
    pets.items.jsonl     line i: {"row", "id", "key", "record"}
    pets.model.json      the model, the scale of int8 codes, the files' sizes

All rows have length 1, so inner product, cosine and L2 rank them alike. int8 codes share one scale, so that inner products of codes keep
the order of cosines in tools that know nothing of it; the price is recall (0.92 beside 1.00 on vectors like CLIP's: rescore from .fbin).

    faiss     rows = numpy.memmap("pets.fbin", numpy.float32, "r", 8).reshape(-1, D); ids = numpy.fromfile("pets.ids.i64bin", numpy.int64, offset=8)
              index = faiss.IndexIDMap(faiss.IndexFlatIP(D)); index.add_with_ids(rows, ids)
    DiskANN   build_disk_index --data_type float --dist_fn mips --data_path pets.fbin ...; it answers with rows: line of items.jsonl
    cuVS      cuvs.common / cuvs-bench read .fbin, .f16bin and .i8bin as they are
    Milvus    takes Parquet instead (parquet.py)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.files import new_files
from edgeclip.runtime.index.away.vectors import AT_ONCE, Batches, Ids, origin_facts, read_origin, unit_rows
from edgeclip.runtime.index.types import Item, Origin

if TYPE_CHECKING:
    from edgeclip.runtime.index.index import Index

DTYPES: dict[str, Any] = {".fbin": np.float32, ".f16bin": np.float16, ".i8bin": np.int8}
HEADER = 8  # bytes
FORMAT = "edgeclip.fbin 1"


def beside(path: Path) -> tuple[Path, Path, Path]:
    """Ids, items and the model's note that belong to a vector file."""
    return tuple(path.with_suffix(suffix) for suffix in (".ids.i64bin", ".items.jsonl", ".model.json"))  # type: ignore[return-value]


def export_fbin(index: Index, path: Path) -> int:
    """Write all living items, the suffix choosing the type; the vector file appears last, when the others are whole.

    Returns:
        rows written.
    Raises:
        InputError: another suffix, or a place that cannot be written.
    """
    dtype = _dtype(path)
    _little_endian()
    scale = _scale(index) if dtype is np.int8 else 1.0
    rows = 0
    with new_files(path, *beside(path)) as (vectors_at, ids_at, items_at, note_at):
        with (
            vectors_at.open("wb") as vectors_file,
            ids_at.open("wb") as ids_file,
            items_at.open("w", encoding="ascii") as items_file,
        ):
            for stream in (vectors_file, ids_file):
                stream.write(bytes(HEADER))
            for ids, vectors, items in index.batches(AT_ONCE):
                codes = np.clip(np.rint(vectors * scale), -127, 127) if dtype is np.int8 else vectors
                vectors_file.write(codes.astype(dtype).tobytes())
                ids_file.write(ids.astype(np.int64).tobytes())
                items_file.writelines(_lines(rows, ids, items))
                rows += len(ids)
            if rows >= 2**32:
                raise InputError(
                    f"{path}: {rows} rows; the format counts to 4,294,967,295. Export to Parquet."
                )
            for stream, width in ((vectors_file, index.origin.dim), (ids_file, 1)):
                stream.seek(0)
                stream.write(np.array([rows, width], np.uint32).tobytes())
        note = {"format": FORMAT, "rows": rows, "scale": scale, **origin_facts(index.origin)}
        note_at.write_text(json.dumps(note, indent=1, sort_keys=True), encoding="ascii")
    return rows


def _lines(first: int, ids: Ids, items: list[Item]) -> Iterator[str]:
    for row, (number, item) in enumerate(zip(ids.tolist(), items, strict=True), first):
        fields = {"row": row, "id": number, "key": item.key, "record": dict(item.record)}
        yield json.dumps(fields) + "\n"


def _scale(index: Index) -> float:
    """What makes the largest component 127; found in a first pass over the vectors."""
    largest = max((float(np.abs(vectors).max()) for _, vectors, _ in index.batches(AT_ONCE)), default=1.0)
    return 127 / largest


class FbinVectors:
    """A vector file with whatever lies beside it: `origin`, `len`, `batches`. Without items.jsonl a row's number, or id, is its key.

    Raises:
        InputError: a file that is missing, of another length than it says, or that contradicts those beside it.
    """

    def __init__(self, path: Path) -> None:
        _little_endian()
        self.path, dtype = path, _dtype(path)
        self._rows, self.dim = _header(path)
        size, wanted = path.stat().st_size, HEADER + self._rows * self.dim * np.dtype(dtype).itemsize
        if size != wanted or not self.dim:
            raise InputError(
                f"{path}: says {self._rows} rows of {self.dim}, which are {wanted} bytes, got {size}. Copy it again, or export it again."
            )
        shape = (self._rows, self.dim)
        self._vectors: NDArray[Any] = (
            np.memmap(path, dtype, "r", HEADER, shape) if self._rows else np.empty(shape, dtype)
        )
        ids, self._items, note = beside(path)
        self._ids = self._read_ids(ids) if ids.exists() else None
        facts = _read_note(note) if note.exists() else {}
        self._scale = facts.get("scale", 127.0) if dtype is np.int8 else 1.0
        if not isinstance(self._scale, (int, float)) or not self._scale > 0:
            raise InputError(f"{note}: scale: expected a number above 0, got {self._scale!r}.")
        self.origin: Origin | None = read_origin(facts, self.dim, note)

    def __len__(self) -> int:
        return self._rows

    def batches(self, size: int = AT_ONCE) -> Batches:
        """(n,) ids, (n, D) float32 unit rows, n items."""
        lines = self._lines()
        for first in range(0, self._rows, size):
            codes = self._vectors[first : first + size]
            ids = (
                np.arange(first, first + len(codes)) if self._ids is None else self._ids[first : first + size]
            )
            items = [next(lines) if lines else Item(str(number)) for number in ids.tolist()]
            yield ids, unit_rows(codes.astype(np.float32) / np.float32(self._scale), first, self.path), items
        if lines and next(lines, None) is not None:
            raise InputError(
                f"{self._items}: more lines than the {self._rows} rows of {self.path.name}. Export again."
            )

    def _lines(self) -> Iterator[Item] | None:
        return self._read_lines() if self._items.exists() else None

    def _read_lines(self) -> Iterator[Item]:
        with self._items.open(encoding="utf-8", errors="replace") as stream:
            row = -1
            for row, line in enumerate(stream):
                try:
                    found = json.loads(line)
                    item = Item(found["key"], found.get("record", {}))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise InputError(
                        f'{self._items}:{row + 1}: expected {{"row", "id", "key", "record"}}, got {line[:60]!r}.'
                    ) from error
                self._check(found, row)
                yield item
        if row + 1 < self._rows:
            raise InputError(
                f"{self._items}: {row + 1} lines for the {self._rows} rows of {self.path.name}. Export again."
            )

    def _check(self, found: dict[str, Any], row: int) -> None:
        wanted = {"row": row}
        if self._ids is not None and row < self._rows:
            wanted["id"] = int(self._ids[row])
        for name, number in wanted.items():
            if found.get(name, number) != number:
                raise InputError(
                    f"{self._items}:{row + 1}: expected {name} {number}, got {found[name]}. Export again."
                )

    def _read_ids(self, path: Path) -> Ids:
        rows, width = _header(path)
        if (rows, width) != (self._rows, 1) or path.stat().st_size != HEADER + 8 * rows:
            raise InputError(
                f"{path}: expected {self._rows} ids of 8 bytes, got {rows} x {width} in {path.stat().st_size} bytes. Export again."
            )
        return np.fromfile(path, np.int64, offset=HEADER)


def _header(path: Path) -> tuple[int, int]:
    try:
        with path.open("rb") as stream:
            raw = stream.read(HEADER)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    if len(raw) < HEADER:
        raise InputError(f"{path}: expected a header of {HEADER} bytes, got {len(raw)}.")
    rows, width = np.frombuffer(raw, np.uint32).tolist()
    return rows, width


def _read_note(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}). Export the index again, or remove this file."
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object. Export the index again, or remove this file.")
    return found


def _dtype(path: Path) -> Any:
    if path.suffix not in DTYPES:
        raise InputError(f"{path}: expected a name that ends in {', '.join(DTYPES)}.")
    return DTYPES[path.suffix]


def _little_endian() -> None:
    if sys.byteorder != "little":
        raise InputError("fbin files are little-endian and this machine is not. Export to Parquet.")
