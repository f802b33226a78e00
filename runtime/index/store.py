"""The files of an index: one writer, many readers, nothing lost that was acknowledged.

    index.json             the manifest: whatever it does not name does not exist
    lock                   held by the writer (flock)
    logs/<g>.log           begun by generation g: records of adds and removes since the segments
    segments/<name>/       ids.bin, vectors or graph, records.sqlite: never written again once they are named
    removed-<g>.bin, scales-<g>.safetensors

- A change is one record at the end of the log. `append` returns after its fsync: then it is acknowledged.
- `commit` publishes segments: it syncs their files, their folder and `segments/`; then new files beside `index.json` and that folder;
  then the new log, which holds what came since, and `logs/`; then a whole `index.json.tmp`. Renaming this onto `index.json` is the
  change, from everything old to everything new; one more sync of the folder makes it last. Only then old files are unlinked.
- An append that fails is cut off again; a commit that fails before its rename leaves files that nothing names.
- A writer that opens first syncs what the one before it may have left unsynced (folder, log), since it will build on it; then it cuts
  off a torn last record and removes what nothing names.
- Readers take no lock and write nothing. A file that is gone means that the manifest was replaced before: they read it again.
- A forked child of a writer may read and never write.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from edgeclip.errors import InputError
from edgeclip.runtime import fork
from edgeclip.runtime.index import log
from edgeclip.runtime.index.disk import Disk
from edgeclip.runtime.index.item_check import check_addition
from edgeclip.runtime.index.lock import WriteLock
from edgeclip.runtime.index.manifest import Manifest
from edgeclip.runtime.index.publish import (
    begin_index,
    check_place,
    make_folders,
    prepare,
    publish,
    sweep,
    writing,
)
from edgeclip.runtime.index.snapshot import Ids, Tail, begin, load, segment_path
from edgeclip.runtime.index.types import IndexSettings, Item, Origin
from edgeclip.runtime.index.verify import find_problems

__all__ = ["Store", "Tail"]


class Store:
    """An opened index folder. Methods may be called from several threads.

    Args:
        path: the folder.
        disk: what changes files.
        lock: None: for reading.
    """

    def __init__(self, path: Path, disk: Disk, lock: WriteLock | None) -> None:
        self.path, self._disk, self._write_lock = path, disk, lock
        self._lock = threading.RLock()
        self._handle: FileIO | None = None  # of the log, where this is the writer
        self._why_not = "is open for reading. Open it with write=True"
        self._scratch: set[str] = set()  # names of segments that are being written
        self._now = load(path)
        if lock is not None:
            self._take_over()
        fork.register(self)

    @classmethod
    def create(
        cls,
        path: Path,
        origin: Origin,
        settings: IndexSettings,
        *,
        overwrite: bool = False,
        disk: Disk | None = None,
    ) -> Store:
        """Make an index and open it for writing.

        Args:
            path: a folder to make, an empty one, or with `overwrite` an index: its readers see all of the old until they see the new.
            origin: the model whose vectors it will hold.
            settings: of the index, for good.
            overwrite: replace an index.
            disk: what changes files.
        Raises:
            InputError: something is there already, another process writes to it, the place cannot be written.
        """
        disk = disk or Disk()
        with writing(path):
            check_place(path, overwrite)
            make_folders(disk, path)
            lock = WriteLock(path)
            try:
                check_place(path, overwrite)  # once more: two may have come at the same time
                begin_index(disk, path, origin, settings)
                return cls(path, disk, lock)
            except BaseException:
                lock.release()
                raise

    @classmethod
    def open(cls, path: Path, *, write: bool = False, disk: Disk | None = None) -> Store:
        """Open an index.

        Args:
            path: its folder.
            write: to change it; one process may.
            disk: what changes files.
        Raises:
            InputError: no index, a damaged one, one that another process writes or that cannot be written.
        """
        if not write:
            return cls(path, disk or Disk(), None)
        begin(path).handle.close()  # no index: no lock is laid into a folder of something else
        lock = WriteLock(path)
        try:
            with writing(path):
                return cls(path, disk or Disk(), lock)
        except BaseException:
            lock.release()
            raise

    @property
    def manifest(self) -> Manifest:
        """As it was last read or written."""
        return self._now.manifest

    @property
    def generation(self) -> int:
        """Of the manifest: counts its changes. An append is none."""
        return self._now.manifest.generation

    @property
    def writable(self) -> bool:
        """Whether `append` and the like may be called."""
        return self._write_lock is not None

    @property
    def tail(self) -> Tail:
        """The log's items, living and removed ones alike."""
        with self._lock:
            return self._now.buffer.tail

    @property
    def removed(self) -> Ids:
        """(R,) int64 ids that are gone, ascending, of segments and log."""
        with self._lock:
            return self._now.removed

    @property
    def scales(self) -> bytes | None:
        """What int8 and bits were fitted to, as `commit` got it. Raises InputError where it is not what was written."""
        if not (name := self.manifest.scales):
            return None
        return self.manifest.files[name].read(self.path / name)

    def append(self, vectors: ArrayLike, items: Sequence[Item], removes: Sequence[int] = ()) -> Ids:
        """Add and remove in one: there is all of it or nothing. On the disk when this returns.

        Args:
            vectors: (N, D) rows of L2 norm 1.
            items: N, each key once.
            removes: ids that are gone from now on, e.g. of those that these replace.
        Returns:
            (N,) int64 ids that were never given before.
        Raises:
            InputError: shapes, lengths, keys or ids that cannot be; a full disk. Then nothing was changed.
        """
        with self._lock:
            handle = self._writer()
            rows = check_addition(vectors, items, self.manifest.origin.dim)
            ids = np.arange(self._now.next_id, self._now.next_id + len(rows), dtype=np.int64)
            batch = log.Batch(ids, rows, list(items), self._known(removes))
            if not batch.empty:
                self._append(handle, batch)
            return ids

    def remove(self, ids: Sequence[int]) -> None:
        """Have ids gone; those that are gone already stay so. On the disk when this returns. Raises InputError as `append` does."""
        self.append(np.empty((0, self.manifest.origin.dim), np.float32), [], ids)

    def new_segment(self) -> Path:
        """A new empty folder for a segment's files. It becomes part of the index by `commit`."""
        with self._lock, writing(self.path):
            self._writer()
            folder = segment_path(self.path, f"{self.generation + 1}-{secrets.token_hex(6)}")
            self._disk.mkdir(folder)
            self._scratch.add(folder.name)
            return folder

    def commit(
        self,
        new: Sequence[Path],
        keep: Sequence[str],
        *,
        taken: int,
        scales: bytes | None = None,
        measured: Mapping[str, Any] | None = None,
    ) -> None:
        """Publish segments in one step.

        Args:
            new: folders from `new_segment`, written.
            keep: names of the segments that stay.
            taken: how many of the tail's first items the new segments stand for.
            scales: replaces `scales`; None: as before.
            measured: facts that are added to the manifest's.
        Raises:
            InputError: a segment without ids, or a full disk. Then the index is as before.
        """
        with self._lock, writing(self.path):
            self._writer()
            tail = self.tail
            rest = Tail(tail.ids[taken:], tail.vectors[taken:], tail.items[taken:])
            self._swap(prepare(self._disk, self._now, new, keep, rest, scales, measured or {}))
            self._scratch -= {folder.name for folder in new}
            sweep(self._disk, self._now, self._scratch)

    def measured(self, facts: Mapping[str, Any]) -> None:
        """Add facts to the manifest's `measured`, e.g. {"recall": {...}}."""
        with self._lock, writing(self.path):
            self._writer()
            old = self.manifest
            self._swap(replace(old, generation=old.generation + 1, measured={**old.measured, **facts}))

    def written_by(self, variant: str) -> None:
        """Note that a variant of the model writes vectors."""
        with self._lock, writing(self.path):
            self._writer()
            old = self.manifest
            if variant not in old.origin.variants:
                origin = replace(old.origin, variants=(*old.origin.variants, variant))
                self._swap(replace(old, generation=old.generation + 1, origin=origin))

    def refresh(self) -> bool:
        """Read what the writer has done since. Two stats where there is nothing.

        Returns:
            whether there was something.
        Raises:
            InputError: the index is damaged, gone, or has become one of another model.
        """
        with self._lock:
            if self.writable:
                return False
            if self._now.handle.closed:
                raise InputError(f"{self.path}: {self._why_not}.")
            if self._now.newest():
                with contextlib.suppress(InputError, OSError):  # `load` looks again, and says what it is
                    found = self._now.follow()
                    if found is not None:
                        return found
            now = load(self.path, self.manifest)
            mine, theirs = self.manifest.origin, now.manifest.origin
            if (mine.model_id, mine.dim) != (theirs.model_id, theirs.dim):
                now.handle.close()
                raise InputError(
                    f"{self.path}: was replaced by an index of model {theirs.name}. Open it again."
                )
            self._now.handle.close()
            self._now = now
            return True

    def verify(self) -> list[str]:
        """Read every byte and compare it with what was written: the problems, [] for none."""
        return find_problems(self.path)

    def close(self) -> None:
        """Let go of the files; a writer seals its log."""
        with self._lock:
            try:
                if self._handle is not None and not self._now.sealed:
                    none = np.empty(0, np.int64)
                    self._append(
                        self._handle,
                        log.Batch(none, np.empty((0, self.manifest.origin.dim), np.float32), [], none),
                    )
            finally:
                self._stop("is closed. Open it again")
                self._now.handle.close()

    def after_fork(self) -> None:
        """In a forked child: the parent goes on writing."""
        self._lock = threading.RLock()
        if self.writable:
            self._stop(
                "belongs to the process that this one was forked from. Open it again when that one has closed it"
            )

    def _writer(self) -> FileIO:
        """The log's handle. Raises InputError where this is no writer, or no more."""
        if self._handle is None:
            raise InputError(f"{self.path}: cannot be changed: it {self._why_not}.")
        return self._handle

    def _stop(self, why_not: str) -> None:
        if self._handle is not None:
            self._handle.close()
        if self._write_lock is not None:
            self._write_lock.release()
        self._handle, self._write_lock, self._why_not = None, None, why_not

    def _take_over(self) -> None:
        """Make what the last writer left last, and remove what it left half done."""
        # it may have ended between a rename and its sync, and what the old manifest named is removed below
        self._disk.sync_folder(self.path)
        self._handle = self._disk.opened(self._now.log_path)
        if os.fstat(self._handle.fileno()).st_size > self._now.position.end:
            self._disk.truncate(self._handle, self._now.position.end)
        self._disk.sync(self._handle)
        sweep(self._disk, self._now, self._scratch)

    def _append(self, handle: FileIO, batch: log.Batch) -> None:
        record, start = log.encode(batch), self._now.position.end
        payload = memoryview(record)[log.HEAD_BYTES :]
        try:
            with writing(self.path):
                self._disk.append(handle, record)
                self._disk.sync(handle)
            self._now.position = log.Position(
                start + len(record), start, b""
            )  # no mark: who writes never reads on
            self._now.take(
                log.decode(payload, self.manifest.origin.dim, "append")
            )  # as a reader will have it
        except BaseException as error:
            self._cut(handle, start)
            if not isinstance(error, InputError):  # Ctrl-C, anywhere in between
                self._stop("was interrupted while it wrote. Open it again")
            raise

    def _cut(self, handle: FileIO, size: int) -> None:
        try:
            self._disk.truncate(handle, size)
            self._disk.sync(handle)
        except OSError:
            self._stop("could not undo an append that failed. Open it again")
            raise

    def _known(self, ids: Sequence[int]) -> Ids:
        found = np.asarray(ids, np.int64).reshape(-1)
        if len(found) and not (found.min() >= 0 and found.max() < self._now.next_id):
            raise InputError(
                f"removes: expected ids from 0 to {self._now.next_id - 1}, got {found.tolist()[:5]}."
            )
        return found

    def _swap(self, manifest: Manifest) -> None:
        """From the old manifest to the new one, whose files are synced."""
        try:
            publish(self._disk, self.path, manifest)
            new = load(self.path, self.manifest)
            if new.manifest.log != self.manifest.log:
                self._writer().close()
                self._handle = self._disk.opened(new.log_path)
            self._now.handle.close()
            self._now = new
        except BaseException:
            if not self._now.newest():  # nobody knows which of the two a power cut would leave
                self._stop("could not sync its manifest. Open it again")
            raise
