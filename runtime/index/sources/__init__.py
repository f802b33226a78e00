"""What an index is built from: pictures, captions or ready-made vectors, as a stream of entries in a stable order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edgeclip.errors import InputError
from edgeclip.files import PICTURE_SUFFIXES
from edgeclip.runtime.index.sources.entry import Entry, Unreadable
from edgeclip.runtime.index.types import Origin

__all__ = ["KINDS", "Entry", "Source", "Unreadable", "open_source"]

# Tried in this order; each module offers matches(location) -> bool and open_source(location, root) -> Source.
KINDS = {
    "parquet": "edgeclip.runtime.index.sources.parquet",
    "csv": "edgeclip.runtime.index.sources.csv_table",
    "jsonl": "edgeclip.runtime.index.sources.jsonl",
    "webdataset": "edgeclip.runtime.index.sources.webdataset",
    "captions": "edgeclip.runtime.index.sources.captions",
    "folder": "edgeclip.runtime.index.sources.folder",
}


@runtime_checkable
class Source(Protocol):
    """A place that entries come from; iterating it again begins anew."""

    names: Sequence[str]  # absolute paths: what an entry's record may give as its "source"
    has_vectors: bool  # ready-made ones: no model is asked
    origin: Origin | None  # the model that made them, where the file says so

    def count(self) -> int | None:
        """About how many entries there are; None: not known before the end."""
        ...

    def covers(self, record: Mapping[str, Any]) -> bool:
        """Whether an item with this record came from here, so that it is gone where it does not come again."""
        ...

    def __iter__(self) -> Iterator[Entry | Unreadable]: ...


def open_source(
    location: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    root: str | os.PathLike[str] | None = None,
    kind: str | None = None,
) -> Source:
    """Open what `location` names.

    Args:
        location: a folder of pictures, tar shards (one, a folder of them, a pattern with {000..009} or *), .parquet (one or a folder),
            .csv, .tsv, .jsonl, a .txt of captions; or several pictures and folders.
        root: keys of pictures are paths below this folder. None: below the folder given, or the folder that a single picture lies in.
        kind: an entry of KINDS; None: the one that fits.
    Raises:
        InputError: nothing is there, no kind fits, or two do.
    """
    if not isinstance(location, (str, os.PathLike)):
        return _open_files([_named(path) for path in location], root)
    name = _named(location)
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind {kind!r}: unknown. Choose from {', '.join(KINDS)}.")
    fitting = [one for one in KINDS if import_module(KINDS[one]).matches(name)] if kind is None else [kind]
    if len(fitting) > 1 and not has_pictures(Path(name)):  # a folder of shards is a folder too
        fitting.remove("folder")
    if len(fitting) > 1:
        raise InputError(f"{name}: holds what {' and '.join(fitting)} read. Say which is meant with --kind.")
    if fitting:
        source: Source = import_module(KINDS[fitting[0]]).open_source(name, root)
        return source
    if Path(name).is_file():
        return _open_files([name], root)
    raise InputError(f"{name}: no such folder or file. Expected pictures or one of {', '.join(KINDS)}.")


def _named(location: str | os.PathLike[str]) -> str:
    """Its name. Raises InputError for an empty one, as of a shell's variable that is not set: it would mean the folder one is in."""
    if not (name := os.fspath(location)):
        raise InputError("source: expected a folder or file, got an empty name.")
    return name


def _open_files(names: Sequence[str], root: str | os.PathLike[str] | None) -> Source:
    from edgeclip.runtime.index.sources import folder

    return folder.open_files(names, root)


def has_pictures(folder: Path) -> bool:
    """Whether some lie right in this folder."""
    return any(path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != "." for path in folder.iterdir())
