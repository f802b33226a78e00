"""The steps by which a folder becomes an index and a manifest becomes the one that counts."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.errors import InputError
from edgeclip.runtime.index import log
from edgeclip.runtime.index.disk import Disk
from edgeclip.runtime.index.lock import NAME as LOCK
from edgeclip.runtime.index.manifest import IDS, NAME, FileEntry, Manifest, SegmentEntry
from edgeclip.runtime.index.snapshot import Ids, Snapshot, Tail, log_path, read_ids, segment_path
from edgeclip.runtime.index.types import IndexSettings, Origin
from edgeclip.version import __version__

logger = logging.getLogger(__name__)
TEMPORARY = f"{NAME}.tmp"


def _is_ours(name: str) -> bool:
    """Whether a file beside the manifest is one that this package makes."""
    return name == TEMPORARY or name.startswith(("removed-", "scales-"))


def check_place(path: Path, overwrite: bool) -> None:
    """Raise InputError where no index may be made: over one without `overwrite`, over anything else at all."""
    if not os.path.lexists(path):
        return
    if (path / NAME).exists():
        if not overwrite:
            raise InputError(
                f"{path}: already an index. Add to it, choose another place, or pass --overwrite to replace it."
            )
    elif not path.is_dir() or any(
        p.name not in (LOCK, "logs", "segments") and not _is_ours(p.name) for p in path.iterdir()
    ):
        raise InputError(f"{path}: already exists and is no index. Choose another place.")


def make_folders(disk: Disk, path: Path) -> None:
    """The folder and those around it, their names on the disk."""
    if not path.parent.is_dir():
        make_folders(disk, path.parent)
    if not path.is_dir():
        with contextlib.suppress(FileExistsError):  # somebody else was quicker
            disk.mkdir(path)
    disk.sync_folder(path.parent)


def last_generation(path: Path) -> int:
    """Of the index that is replaced, or of what a crash has left of one: names are not given twice."""
    logs = [int(p.stem) for p in path.glob("logs/*.log") if p.stem.isdigit()]
    with contextlib.suppress(InputError, OSError):  # a damaged index may be replaced
        logs.append(Manifest.from_json((path / NAME).read_bytes(), "").generation)
    return max(logs, default=0)


def begin_index(disk: Disk, path: Path, origin: Origin, settings: IndexSettings) -> None:
    """An empty index in a folder that is there, in place of one that may be there. Raises OSError."""
    generation = last_generation(path) + 1
    made = {"edgeclip": __version__, "created": now()}
    manifest = Manifest(generation, origin, settings, generation, 0, made=made)
    for folder in (path / "logs", path / "segments"):
        if not folder.is_dir():
            disk.mkdir(folder)
    begin_log(disk, manifest, path, None)
    disk.sync_folder(path)
    publish(disk, path, manifest)


def prepare(
    disk: Disk,
    held: Snapshot,
    new: Sequence[Path],
    keep: Sequence[str],
    rest: Tail,
    scales: bytes | None,
    measured: Mapping[str, Any],
) -> Manifest:
    """The next manifest, of new segments and old ones, with everything that it names on the disk.

    Args:
        disk: what changes files.
        held: the state so far.
        new: folders of segments.
        keep: names of segments that stay.
        rest: what the log goes on with.
        scales: None: as before.
        measured: facts more.
    Raises:
        InputError: no such segment, or one without ids.
        OSError: a full disk, and the like.
    """
    old, path, generation = held.manifest, held.path, held.manifest.generation + 1
    segments = (*_kept(held, keep), *(_adopt(disk, folder) for folder in new))
    gone = _still_held(held, segments, rest.ids)
    files: dict[str, FileEntry] = {}
    removed, scales_name = "", old.scales
    if len(gone):
        removed = f"removed-{generation}.bin"
        files[removed] = _write(disk, path / removed, gone.astype("<i8").tobytes())
    if scales is not None:
        scales_name = f"scales-{generation}.safetensors"
        files[scales_name] = _write(disk, path / scales_name, scales)
    if files:
        disk.sync_folder(path)
    if scales_name == old.scales != "":
        files[scales_name] = old.files[scales_name]
    manifest = replace(
        old, generation=generation, log=generation, next_id=held.next_id, segments=segments, removed=removed,
        scales=scales_name, files=files, measured={**old.measured, **measured},
    )  # fmt: skip
    begin_log(disk, manifest, path, rest)
    return manifest


def _adopt(disk: Disk, folder: Path) -> SegmentEntry:
    files = {path.name: FileEntry.of(path) for path in sorted(folder.iterdir())}
    if IDS not in files:
        raise InputError(f"{folder}: a segment without {IDS}.")
    for name in files:
        disk.adopt(folder / name)
    disk.sync_folder(folder)
    disk.sync_folder(folder.parent)
    return SegmentEntry(folder.name, files[IDS].size // 8, files)


def _kept(held: Snapshot, names: Sequence[str]) -> list[SegmentEntry]:
    known = {entry.name: entry for entry in held.manifest.segments}
    if unknown := sorted(set(names) - set(known)):
        raise InputError(f"{held.path}: holds no segment {unknown[0]!r} that could be kept.")
    return [known[name] for name in names]


def _still_held(held: Snapshot, segments: Sequence[SegmentEntry], ids: Ids) -> Ids:
    """Those of the removed ids that segments or `ids` hold: nobody needs to know of the others."""
    removed = held.removed
    if not len(removed):
        return removed
    inside = [read_ids(segment_path(held.path, e.name) / IDS, e.files[IDS]) for e in segments]
    return removed[np.isin(removed, np.concatenate([ids, *inside]))]


def _write(disk: Disk, path: Path, data: bytes) -> FileEntry:
    disk.write(path, data)
    disk.sync(path)
    return FileEntry.of(path)


def begin_log(disk: Disk, manifest: Manifest, path: Path, rest: Tail | None) -> None:
    """Write the log that this manifest names, with what no segment holds yet. `rest`: None: nothing."""
    head = log.beginning(manifest.log, manifest.origin.dim).mark
    target = log_path(path, manifest.log)
    if rest is not None and len(rest.ids):
        head += log.encode(log.Batch(rest.ids, rest.vectors, rest.items, np.empty(0, np.int64)))
    disk.write(target, head)
    disk.sync(target)
    disk.sync_folder(target.parent)


def publish(disk: Disk, path: Path, manifest: Manifest) -> None:
    """Make this the manifest."""
    manifest = replace(manifest, made={**manifest.made, "changed": now()})
    disk.write(path / TEMPORARY, manifest.to_json().encode())
    disk.sync(path / TEMPORARY)
    disk.rename(path / TEMPORARY, path / NAME)
    disk.sync_folder(path)


def sweep(disk: Disk, held: Snapshot, spared: Collection[str]) -> None:
    """Remove what the manifest does not name. What cannot be removed does no harm, and the next writer tries again.

    Args:
        spared: names of segments that are being written.
    """
    kept = {NAME, LOCK, *held.manifest.files}
    segments = {*spared, *(entry.name for entry in held.manifest.segments)}
    try:
        for path in held.path.iterdir():
            if path.name not in kept and _is_ours(path.name):
                disk.unlink(path)
        for path in (held.path / "logs").iterdir():
            if path != held.log_path:
                disk.unlink(path)
        for path in (held.path / "segments").iterdir():
            if path.name not in segments:
                disk.remove(path)
    except OSError as error:
        logger.warning("%s: an old file stays (%s)", held.path, error)


def now() -> str:
    """UTC, as manifests have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what changes files: an OSError becomes an InputError that names the file, or else `path`."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise InputError(
            f"{where}: cannot be written ({error.strerror or error}). Make room there, or see its rights."
        ) from error
