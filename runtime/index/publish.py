"""The steps by which a folder becomes an index and a manifest becomes the one that counts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from edgeclip.errors import InputError
from edgeclip.runtime.index import log
from edgeclip.runtime.index.disk import Disk
from edgeclip.runtime.index.lock import NAME as LOCK
from edgeclip.runtime.index.manifest import NAME, Manifest
from edgeclip.runtime.index.snapshot import log_path

TEMPORARY = f"{NAME}.tmp"


def is_ours(name: str) -> bool:
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
        p.name not in (LOCK, "logs", "segments") and not is_ours(p.name) for p in path.iterdir()
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


def begin_log(disk: Disk, path: Path, manifest: Manifest, rest: log.Batch | None) -> None:
    """Write the log that this manifest names, with what no segment holds yet. `rest`: None: nothing."""
    head = log.beginning(manifest.log, manifest.origin.dim).mark
    target = log_path(path, manifest.log)
    disk.write(target, head + (log.encode(rest) if rest is not None and not rest.empty else b""))
    disk.sync(target)
    disk.sync_folder(target.parent)


def publish(disk: Disk, path: Path, manifest: Manifest) -> None:
    """Make this the manifest."""
    disk.write(path / TEMPORARY, manifest.to_json().encode())
    disk.sync(path / TEMPORARY)
    disk.rename(path / TEMPORARY, path / NAME)
    disk.sync_folder(path)


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
