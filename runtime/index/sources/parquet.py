"""Parquet: pictures as bytes, as Hugging Face's {bytes, path}, or by path; captions, fields; or ready-made vectors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.runtime.index.away.parquet import ParquetVectors
from edgeclip.runtime.index.sources.entry import Entry, Unreadable, Whole
from edgeclip.runtime.index.sources.folder import absolute
from edgeclip.runtime.index.sources.rows import columns_of, row_entry
from edgeclip.runtime.index.types import Origin

_ROWS = 64  # read at once: pictures of 1 MB each still fit


def matches(location: str) -> bool:
    """Whether this is a .parquet, or a folder that holds some."""
    path = Path(location)
    return path.suffix.lower() == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def open_source(location: str, root: str | os.PathLike[str] | None = None) -> Tables | Vectors:
    """One file, or all of a folder by name.

    Raises:
        InputError: one cannot be read, has no column to go by, or holds something else than the rest. MissingExtraError: no pyarrow.
    """
    path = absolute(location)
    paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    files = [(one, _open(one)) for one in paths]
    columns = [columns_of(file.schema_arrow.names, str(one)) for one, file in files]
    with_vectors = {vector is not None for _, vector in columns}
    if len(with_vectors) > 1:
        raise InputError(f"{location}: some of its files hold vectors, some pictures. Pass them one by one.")
    return Vectors(location, paths) if with_vectors == {True} else Tables(files, columns)


class Vectors(Whole):
    """Tables of ready-made vectors."""

    has_vectors = True

    def __init__(self, location: str, paths: Sequence[Path]) -> None:
        self._tables = [ParquetVectors(path) for path in paths]
        self.names: Sequence[str] = [str(path) for path in paths]
        origins = {table.origin.model_id if table.origin else None: table.origin for table in self._tables}
        if len(origins) > 1:
            raise InputError(f"{location}: its files hold vectors of several models. Pass those of one.")
        self.origin: Origin | None = next(iter(origins.values()))

    def count(self) -> int:
        """Rows of all files."""
        return sum(len(table) for table in self._tables)

    def __iter__(self) -> Iterator[Entry | Unreadable]:
        for table in self._tables:
            try:
                for _, vectors, items in table.batches():
                    for vector, item in zip(vectors, items, strict=True):
                        yield Entry(item.key, {"source": str(table.path), **item.record}, vector=vector)
            except InputError as error:
                yield Unreadable(table.path.name, str(error), partly=True)


class Tables(Whole):
    """Tables of pictures or captions, read in turn."""

    has_vectors = False
    origin: Origin | None = None

    def __init__(
        self, files: Sequence[tuple[Path, Any]], columns: Sequence[tuple[str | None, str | None]]
    ) -> None:
        self._files, self._columns = files, columns
        self.names: Sequence[str] = [str(path) for path, _ in files]

    def count(self) -> int:
        """Rows of all files."""
        return sum(int(file.metadata.num_rows) for _, file in self._files)

    def __iter__(self) -> Iterator[Entry | Unreadable]:
        for (path, file), columns in zip(self._files, self._columns, strict=True):
            number = 0
            try:
                for batch in file.iter_batches(_ROWS, columns=_wanted(file.schema_arrow, columns[0])):
                    for row in batch.to_pylist():
                        number += 1
                        yield row_entry(row, number, path, *columns)
            except (OSError, ValueError) as error:  # pyarrow's own errors are among them
                reason = f"{path}: damaged after row {number} ({error}). Copy it again."
                yield Unreadable(path.name, reason, partly=True)


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: pyarrow is not installed. pip install 'edgeclip[parquet]'"
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(
            f"{path}: cannot be read as Parquet ({reason}). Check the path, or copy it again."
        ) from error


def _wanted(schema: Any, picture: str | None) -> list[str]:
    """What is read: the picture, captions, and scalars; other lists and bytes may be large and are passed over."""
    import pyarrow.types as types

    def plain(kind: Any) -> bool:
        return not (types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))

    def texts(kind: Any) -> bool:
        return bool(
            types.is_list(kind)
            and (types.is_string(kind.value_type) or types.is_large_string(kind.value_type))
        )

    return [field.name for field in schema if field.name == picture or plain(field.type) or texts(field.type)]
