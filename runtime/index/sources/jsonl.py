"""JSON Lines: one object a line, with a picture's path, its caption or captions, and fields; or with a ready-made vector."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError
from edgeclip.runtime.index.sources.csv_table import Table
from edgeclip.runtime.index.sources.folder import absolute


def matches(location: str) -> bool:
    """Whether the name ends in .jsonl or .ndjson."""
    return Path(location).suffix.lower() in (".jsonl", ".ndjson")


def open_source(location: str, root: str | os.PathLike[str] | None = None) -> Table:
    """Read the list; the first object says which keys hold what.

    Raises:
        InputError: the file cannot be read, or has no key to go by.
    """
    path = absolute(location)
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError as error:
        raise InputError(
            f"{location}: cannot be read ({error.strerror}). Expected one object a line."
        ) from error
    rows = [_row(line, f"{path.name}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    first = next((row for row in rows if isinstance(row, dict)), None)
    if first is None and rows:
        raise InputError(f"{rows[0]} Expected one object a line.")
    return Table(path, rows, list(first or []))


def _row(line: str, where: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"{where}: no JSON ({error})."
    return row if isinstance(row, dict) else f"{where}: expected an object, got a {type(row).__name__}."
