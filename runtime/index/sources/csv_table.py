"""CSV and TSV: a header line; a column that names the picture, relative to the list's folder, captions, and fields."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError
from edgeclip.runtime.index.sources.entry import Entry, Unreadable, Whole
from edgeclip.runtime.index.sources.folder import absolute
from edgeclip.runtime.index.sources.rows import columns_of, merged, row_entry
from edgeclip.runtime.index.types import Origin


def matches(location: str) -> bool:
    """Whether the name ends in .csv or .tsv."""
    return Path(location).suffix.lower() in (".csv", ".tsv")


def open_source(location: str, root: str | os.PathLike[str] | None = None) -> Table:
    """Read the list; the separator (comma, tab, semicolon) is the one that the header uses most.

    Raises:
        InputError: the file cannot be read, or has no column to go by.
    """
    path = absolute(location)
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            header = stream.readline()
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=max(",\t;", key=header.count))
            return Table(path, [_typed(row) for row in reader], reader.fieldnames or [])
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{location}: cannot be read ({reason}). Expected a header line and a row a picture."
        ) from error


class Table(Whole):
    """Rows held in memory, as CSV and JSON Lines give them."""

    origin: Origin | None = None

    def __init__(self, path: Path, rows: Sequence[dict[str, Any] | str], names: Sequence[str]) -> None:
        self._path, self._rows = path, rows  # a str: why that line is no row
        self._picture, self._vector = columns_of(names, str(path))
        self.has_vectors = self._vector is not None
        self.names: Sequence[str] = [str(path)]

    def count(self) -> int:
        """Rows; those of one picture are one entry."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Entry | Unreadable]:
        return merged(self._entries())

    def _entries(self) -> Iterator[Entry | Unreadable]:
        for number, row in enumerate(self._rows, 1):
            if isinstance(row, str):
                yield Unreadable(f"{self._path.name}:{number}", row, partly=True)
            else:
                yield row_entry(row, number, self._path, self._picture, self._vector)


def _typed(row: dict[str | Any, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in row.items() if isinstance(name, str)}


def _number(text: str | None) -> str | int | float | None:
    """A number where the text is exactly one, so that it can be compared; "007" stays a text, an empty cell is nothing."""
    if not text:
        return None
    for kind in (int, float):
        try:
            value: int | float = kind(text)
        except ValueError:
            continue
        if str(value) == text:
            return value
    return text
