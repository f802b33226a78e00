"""What a folder holds at one moment: its manifest, the log's items so far, and which ids are gone. Reading needs no lock and writes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index import log
from edgeclip.runtime.index.manifest import DAMAGED, NAME, FileEntry, Manifest, SegmentEntry
from edgeclip.runtime.index.types import Item

Ids = NDArray[np.int64]
TRIES = 100  # a writer that commits this often while one reader opens is no writer but a loop


@dataclass(frozen=True, eq=False)
class Tail:
    """Items of the log, living and removed ones alike."""

    ids: Ids  # (M,) ascending
    vectors: NDArray[np.float32]  # (M, D) unit rows
    items: list[Item]  # M


class TailBuffer:
    """Items that keep coming. What was given out stays as it is: rows are written behind it, or into a larger array."""

    def __init__(self, dim: int) -> None:
        self._ids, self._vectors = np.empty(16, np.int64), np.empty((16, dim), np.float32)
        self._items: list[Item] = []
        self._given: Tail | None = None

    @property
    def tail(self) -> Tail:
        """All so far."""
        if self._given is None:
            count = len(self._items)
            self._given = Tail(self._ids[:count], self._vectors[:count], self._items[:])
        return self._given

    @property
    def last_id(self) -> int:
        """The largest so far, -1 of none."""
        return int(self._ids[len(self._items) - 1]) if self._items else -1

    def extend(self, ids: Ids, vectors: NDArray[np.float32], items: Sequence[Item]) -> None:
        """Take N more."""
        start, end = len(self._items), len(self._items) + len(items)
        if end > len(self._ids):
            size = max(end, 2 * len(self._ids))
            larger = np.empty(size, np.int64), np.empty((size, self._vectors.shape[1]), np.float32)
            larger[0][:start], larger[1][:start] = self._ids[:start], self._vectors[:start]
            self._ids, self._vectors = larger
        self._ids[start:end], self._vectors[start:end] = ids, vectors
        self._items.extend(items)
        self._given = None


@dataclass(eq=False)
class Snapshot:
    """A manifest and what its log says beyond it. `follow` reads on; the rest never changes."""

    path: Path  # of the index
    manifest: Manifest
    handle: FileIO  # of index.json, kept open: while it is, no other file gets its inode number
    identity: tuple[int, int]  # device and inode
    position: log.Position
    buffer: TailBuffer
    next_id: int
    seen: tuple[int, int] = (0, 0)  # size and time of the log when it was read
    sealed: bool = False  # whether its last record is an empty one
    _removed: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    _more: list[Ids] = field(default_factory=list)  # not yet sorted into `_removed`

    @cached_property
    def log_path(self) -> Path:
        """Where the log lies."""
        return log_path(self.path, self.manifest.log)

    @cached_property
    def _paths(self) -> tuple[str, str]:
        """Of the manifest and the log, as they are looked at for each search: a Path made anew takes longer than the look."""
        return str(self.path / NAME), str(self.log_path)

    @property
    def removed(self) -> Ids:
        """(R,) ids that are gone, ascending."""
        if self._more:
            self._removed, self._more = np.unique(np.concatenate([self._removed, *self._more])), []
        return self._removed

    def newest(self) -> bool:
        """Whether `index.json` is still the one that was read."""
        try:
            now = os.stat(self._paths[0])  # noqa: PTH116
        except FileNotFoundError:
            return False
        return (now.st_dev, now.st_ino) == self.identity

    def follow(self) -> bool | None:
        """Read what the log has got since. True: something; None: read all again, it was cut. Raises InputError, OSError."""
        now = os.stat(self._paths[1])  # noqa: PTH116
        if (stamp := (now.st_size, now.st_mtime_ns)) == self.seen:
            return False
        found = log.read(self.log_path, self.position, self.manifest.origin.dim)
        if found is None:
            return None
        batches, self.position = found
        for batch in batches:
            self.take(batch)
        self.seen = stamp
        return any(not batch.empty for batch in batches)

    def follow_all(self) -> None:
        """The removed ids and the whole log, of a snapshot that has just begun. Raises InputError, OSError."""
        if name := self.manifest.removed:
            self.take_removed(read_ids(self.path / name, self.manifest.files[name]))
        if self.follow() is None:
            raise InputError(f"{self.log_path}: does not begin as this index's log does. {DAMAGED}")

    def take(self, batch: log.Batch) -> None:
        """One record more. Raises InputError for ids that were given before."""
        ids = batch.ids
        if len(ids):
            if ids[0] <= self.buffer.last_id:
                raise InputError(f"{self.log_path}: id {ids[0]} comes twice. {DAMAGED}")
            self.buffer.extend(ids, batch.vectors, batch.items)
            self.next_id = max(self.next_id, int(ids[-1]) + 1)
        if len(batch.removes):
            self.take_removed(batch.removes)
        self.sealed = batch.empty

    def take_removed(self, ids: Ids) -> None:
        """(R,) ids that are gone too."""
        self._more.append(ids)


def log_path(folder: Path, generation: int) -> Path:
    """Of the log that a generation began."""
    return folder / "logs" / f"{generation}.log"


def segment_path(folder: Path, name: str) -> Path:
    """Of a segment."""
    return folder / "segments" / name


def load(path: Path, known: Manifest | None = None) -> Snapshot:
    """The newest state. A writer may swap it meanwhile: files that are gone because of that are no damage.

    Args:
        path: the index.
        known: a manifest whose segments were looked at before.
    Raises:
        InputError: no index, or a damaged one; says which file.
    """
    for _ in range(TRIES):
        snapshot = begin(path)
        manifest = snapshot.manifest
        try:
            _check_files(path, manifest, known)
            snapshot.follow_all()
            return snapshot
        except (InputError, OSError) as error:
            newest = snapshot.newest()
            snapshot.handle.close()
            if not newest:
                continue
            if isinstance(error, InputError):
                raise
            raise unreadable(Path(error.filename or path), error) from error
    raise InputError(f"{path}: was replaced {TRIES} times while it was opened. Open it again.")


def unreadable(path: Path, error: OSError) -> InputError:
    """What to say of a file that the system does not give."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: missing. {DAMAGED}")
    return InputError(f"{path}: cannot be read ({error.strerror or error}). See its rights and its disk.")


def begin(path: Path) -> Snapshot:
    """The manifest alone. Raises InputError for no index, or a damaged one."""
    try:
        handle = (path / NAME).open("rb", buffering=0)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "is no index: it holds no index.json" if path.is_dir() else "no such index"
        raise InputError(f"{path}: {what}. Make one with `edgeclip index build`.") from error
    except OSError as error:
        raise unreadable(path / NAME, error) from error
    try:
        manifest = Manifest.from_json(handle.readall(), str(path / NAME))
    except BaseException:
        handle.close()
        raise
    dim = manifest.origin.dim
    start = log.beginning(manifest.log, dim)
    stat = os.fstat(handle.fileno())
    identity = (stat.st_dev, stat.st_ino)
    return Snapshot(path, manifest, handle, identity, start, TailBuffer(dim), manifest.next_id)


def _check_files(path: Path, manifest: Manifest, known: Manifest | None) -> None:
    seen = set() if known is None else {entry.name for entry in known.segments}
    for entry in manifest.segments:
        if entry.name not in seen:
            check_segment(path, entry)
    for name, file in manifest.files.items():
        file.check(path / name)


def read_ids(path: Path, entry: FileEntry) -> Ids:
    """(N,) int64. Raises InputError where they are not those that were written."""
    return np.frombuffer(entry.read(path), "<i8").astype(np.int64)


def check_segment(path: Path, entry: SegmentEntry) -> None:
    """The quick look at a segment's files. Raises InputError for the first that is wrong."""
    for name, file in entry.files.items():
        file.check(segment_path(path, entry.name) / name)
