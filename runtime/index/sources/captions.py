"""A .txt of captions, one a line: no pictures, for the text tower."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeclip.errors import InputError
from edgeclip.runtime.index.sources.entry import Entry, Unreadable, Whole
from edgeclip.runtime.index.sources.folder import absolute
from edgeclip.runtime.index.types import Origin


def matches(location: str) -> bool:
    """Whether the name ends in .txt."""
    return Path(location).suffix.lower() == ".txt"


def open_source(location: str, root: str | os.PathLike[str] | None = None) -> Captions:
    """Raises InputError where the file cannot be read."""
    return Captions(absolute(location))


class Captions(Whole):
    """Lines that are not empty; a key is the line's number."""

    has_vectors = False
    origin: Origin | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names: Sequence[str] = [str(path)]
        try:
            self._lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(
                f"{path}: cannot be read ({reason}). Expected UTF-8 text, one caption a line."
            ) from error

    def count(self) -> int:
        """Lines."""
        return len(self._lines)

    def __iter__(self) -> Iterator[Entry | Unreadable]:
        for number, line in enumerate(self._lines, 1):
            if text := line.strip():
                yield Entry(f"{self._path.name}:{number}", {"source": str(self._path), "caption": text})
