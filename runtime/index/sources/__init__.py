"""What an index is built from: pictures, captions or ready-made vectors, as a stream of entries in a stable order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

from edgeclip.errors import InputError
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

    def __iter__(self) -> Iterator[Entry | Unreadable]: ...


def open_source(
    location: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    root: str | os.PathLike[str] | None = None,
) -> Source:
    """Open what `location` names, by its kind.

    Args:
        location: a folder of pictures, tar shards (one, a folder of them, a pattern with {000..009} or *), .parquet (one or a folder),
            .csv, .tsv, .jsonl, a .txt of captions; or several pictures and folders.
        root: keys of pictures are paths below this folder. None: below the folder given, or the folder that a single picture lies in.
    Raises:
        InputError: nothing is there, or no kind fits.
    """
    if not isinstance(location, (str, os.PathLike)):
        from edgeclip.runtime.index.sources import folder

        return folder.open_files([os.fspath(path) for path in location], root)
    name = os.fspath(location)
    for module_name in KINDS.values():
        module = import_module(module_name)
        if module.matches(name):
            source: Source = module.open_source(name, root)
            return source
    if Path(name).is_file():
        return open_source([name], root)
    raise InputError(f"{name}: no such folder or file. Expected pictures or one of {', '.join(KINDS)}.")
