"""A folder of pictures, searched with its subfolders; x.txt and x.json beside x.jpg say more about it. Or pictures one by one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError
from edgeclip.files import PICTURE_SUFFIXES
from edgeclip.runtime.index.sources.entry import (
    Entry,
    Unreadable,
    caption_facts,
    check_key,
    file_facts,
    split_captions,
    user_facts,
)
from edgeclip.runtime.index.types import Origin


def matches(location: str) -> bool:
    """Whether this is a folder."""
    return Path(location).is_dir()


def open_source(location: str, root: str | os.PathLike[str] | None = None) -> Pictures:
    """Raises InputError where `root` is not above the folder."""
    return open_files([location], root)


def open_files(locations: Sequence[str], root: str | os.PathLike[str] | None = None) -> Pictures:
    """Folders and pictures, in the order given.

    Raises:
        InputError: one is not there or not below `root`, or none came.
    """
    places = []
    for location in locations:
        path = absolute(location)
        if not path.exists():
            raise InputError(f"{location}: no such file or folder. Check the path.")
        own = path if path.is_dir() else path.parent
        base = absolute(root) if root is not None else own
        if base != own and base not in own.parents:
            raise InputError(f"{location}: not below --root {base}. Choose a folder above it.")
        places.append((path, base))
    if not places:
        raise InputError("no pictures. Pass files or folders.")
    return Pictures(places)


class Pictures:
    """Pictures by their paths. Hidden files and folders are left out, links to folders are not followed."""

    has_vectors = False
    origin: Origin | None = None

    def __init__(self, places: Sequence[tuple[Path, Path]]) -> None:
        self._places = places  # (file or folder, what keys are relative to)
        self.names: Sequence[str] = sorted({str(base) for _, base in places})

    def count(self) -> int:
        """How many pictures there are now."""
        return sum(1 for found in self._paths() if not isinstance(found, Unreadable))

    def covers(self, record: Mapping[str, Any]) -> bool:
        """Whether an item with this record is one of the pictures given, or lies in one of the folders."""
        source, name = record.get("source"), record.get("path")
        if not isinstance(source, str) or not isinstance(name, str):
            return False
        path = Path(source, name)
        return any(
            str(base) == source and (place == path or place in path.parents) for place, base in self._places
        )

    def __iter__(self) -> Iterator[Entry | Unreadable]:
        for found in self._paths():
            yield found if isinstance(found, Unreadable) else _entry(*found)

    def _paths(self) -> Iterator[tuple[Path, Path] | Unreadable]:
        for path, base in self._places:
            if path.is_dir():
                for found in _below(path):
                    yield found if isinstance(found, Unreadable) else (found, base)
            else:
                yield path, base


def _below(folder: Path) -> Iterator[Path | Unreadable]:
    """Pictures below a folder, each folder's own first, by name."""
    failed: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=failed.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES:
                yield Path(place, name)
        while failed:
            yield _no_entry(failed.pop())
    while failed:
        yield _no_entry(failed.pop())


def _no_entry(error: OSError) -> Unreadable:
    return Unreadable(
        str(error.filename), f"{error.filename}: the folder cannot be read ({error.strerror}).", partly=True
    )


def absolute(path: str | os.PathLike[str]) -> Path:
    """The path from the root, without . and .. (and without following links)."""
    return Path(os.path.abspath(path))  # noqa: PTH100  (Path.absolute keeps ..)


def _entry(path: Path, base: Path) -> Entry | Unreadable:
    name = path.relative_to(base).as_posix()
    try:
        check_key(name)
        record = {"source": str(base), "path": name, **file_facts(path), **beside(path)}
    except (InputError, OSError) as error:
        return Unreadable(name, _reason(path, error))
    return Entry(name, record, path)


def _reason(path: Path, error: Exception) -> str:
    return f"{path}: cannot be read ({error.strerror})." if isinstance(error, OSError) else str(error)


def beside(path: Path) -> dict[str, Any]:
    """What x.json and x.txt beside x.jpg say: fields, and captions, one a line.

    Raises:
        InputError: the .json holds no object. OSError: one is there and cannot be read.
    """
    found: dict[str, Any] = {}
    if (table := _text(path.with_suffix(".json"))) is not None:
        found = fields_of(table, str(path.with_suffix(".json")))
    if (text := _text(path.with_suffix(".txt"))) is not None:
        found.update(caption_facts(text.splitlines()))
    return found


def fields_of(text: str, where: str) -> dict[str, Any]:
    """Captions and fields of one JSON object. Raises InputError where it is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected one JSON object ({error}). Mend or remove it.") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected one JSON object, got a {type(row).__name__}. Mend or remove it.")
    captions, rest = split_captions(row)
    return {**user_facts(rest), **captions}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return None
