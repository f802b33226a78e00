"""Every byte of an index compared with what was written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from edgeclip.errors import InputError
from edgeclip.files import sha256_file
from edgeclip.runtime.index.manifest import DAMAGED, IDS, FileEntry, SegmentEntry
from edgeclip.runtime.index.snapshot import Ids, Snapshot, begin, read_ids, segment_path, unreadable


def find_problems(path: Path) -> list[str]:
    """What is wrong with an index, one line each, [] for nothing. It may be one that cannot be opened, or that a writer changes."""
    while True:
        try:
            snapshot = begin(path)
        except InputError as error:
            return [str(error)]
        try:
            problems = _Check(snapshot).run()
            if not problems or snapshot.newest():
                return problems
        finally:
            snapshot.handle.close()


class _Check:
    """Of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot, self._path = snapshot, snapshot.path
        self._problems: list[str] = []

    def run(self) -> list[str]:
        """All the problems."""
        manifest = self._snapshot.manifest
        for entry in manifest.segments:
            for name, file in entry.files.items():
                self._try(partial(_whole, segment_path(self._path, entry.name) / name, file))
        for name, file in manifest.files.items():
            self._try(partial(_whole, self._path / name, file))
        self._try(self._snapshot.follow_all)
        if not self._problems:
            self._try(self._ids)
        return list(dict.fromkeys(self._problems))

    def _ids(self) -> None:
        entries = self._snapshot.manifest.segments
        held = [self._of(entry) for entry in entries] + [self._snapshot.buffer.tail.ids]
        everything = np.concatenate(held)
        if len(np.unique(everything)) < len(everything):
            raise InputError(f"{self._path}: an id stands in two places. {DAMAGED}")
        if len(everything) and not 0 <= everything.min() <= everything.max() < self._snapshot.next_id:
            raise InputError(f"{self._path}: an id that was never given. {DAMAGED}")

    def _of(self, entry: SegmentEntry) -> Ids:
        path = segment_path(self._path, entry.name) / IDS
        ids = read_ids(path, entry.files[IDS])
        if not (np.diff(ids) > 0).all():
            raise InputError(f"{path}: its ids do not ascend. {DAMAGED}")
        return ids

    def _try(self, look: Callable[[], None]) -> None:
        try:
            look()
        except InputError as error:
            self._problems.append(str(error))
        except OSError as error:
            self._problems.append(str(unreadable(Path(error.filename or self._path), error)))


def _whole(path: Path, entry: FileEntry) -> None:
    entry.check(path)
    if sha256_file(path) != entry.sha256:
        raise InputError(f"{path}: not what was written there. {DAMAGED}")
