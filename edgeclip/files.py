"""Files are written whole or not at all: beside their place, flushed, then moved in."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgeclip.errors import InputError

# what a search through a folder takes for a picture
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes | memoryview | str, *, private: bool = False) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one, never a part.

    A pipe or a device is written to: a file moved into its place would, for root, take /dev/stdout from the whole machine.

    Args:
        private: only this user may read it or write to it.
    Raises:
        InputError: the place cannot be written, or the disk is full.
    """
    with _writing(path):
        # a file name that is no Unicode: what stands for its bytes is JSON's own escape
        _write(path, data.encode(errors="backslashreplace") if isinstance(data, str) else data, private)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}). Choose another place, or make room there."
        ) from error


def _write(path: Path, raw: bytes | memoryview, private: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_no_file(path):
        with path.open("ab") as stream:  # stdout may be a file that holds lines already
            stream.write(raw)
        return
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        if not private:
            _share(Path(name))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _share(path: Path) -> None:
    """Give a file that mkstemp made, 0600, the permissions of any new file."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _is_no_file(path: Path) -> bool:
    """Whether it is a pipe, a device, or another name of an open file, as /dev/stdout and /dev/fd/1 are."""
    folder = path.parent.resolve()
    return (
        path.is_fifo() or path.is_char_device() or folder == Path("/dev") or Path("/proc") in folder.parents
    )


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a scratch folder beside `path` that becomes `path` when the block ends without an error.

    Args:
        path: the folder to make.
        overwrite: replace a folder that is there already; the old one goes only when the new one is whole.
    Raises:
        InputError: `path` exists and `overwrite` is false, or cannot be made.
    """
    if os.path.lexists(path) and not overwrite:  # a link that leads nowhere is there too
        raise InputError(f"{path}: already exists. Choose another place, or pass --overwrite to replace it.")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield scratch
        scratch.chmod(0o755)
        if os.path.lexists(path):
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(retired / "old")
            scratch.replace(path)
            shutil.rmtree(retired)
        else:
            scratch.replace(path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def leftovers(path: Path) -> list[Path]:
    """What processes that were killed while they wrote `path` left beside it: never whole, and nobody reads it. One may be at it now."""
    if not path.parent.is_dir():
        return []
    # tempfile's eight characters; twice where a folder is written within a scratch folder's place
    name = re.compile(rf"\.+{re.escape(path.name)}(\.old)?(\.[a-z0-9_]{{8}})+")
    return sorted(one for one in path.parent.iterdir() if name.fullmatch(one.name))


@contextlib.contextmanager
def new_files(*paths: Path) -> Iterator[list[Path]]:
    """Yield scratch files beside `paths` that become them, the first last, when the block ends without an error.

    For what is written piece by piece. Files that are there already are replaced, each whole.

    Raises:
        InputError: a place cannot be written, or the disk is full.
    """
    scratch: list[Path] = []
    with _writing(paths[0]):
        try:
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
                os.close(descriptor)
                scratch.append(Path(name))
            yield scratch
            for written in scratch:
                _share(written)
                with written.open("rb+") as stream:
                    os.fsync(stream.fileno())
            if len(paths) > 1:  # a crash now leaves no first file, rather than an old one beside new ones
                paths[0].unlink(missing_ok=True)
                _sync_folder(paths[0].parent)
            for written, path in list(zip(scratch, paths, strict=True))[::-1]:
                written.replace(path)
                _sync_folder(path.parent)
        finally:
            for left in scratch:
                left.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal, read in pieces."""
    with path.open("rb") as stream:
        return (
            hashlib.file_digest(stream, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _sha256(stream)
        )


def _sha256(stream: object) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):  # type: ignore[attr-defined]
        digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where what one machine adds is kept: $EDGECLIP_CACHE, else $XDG_CACHE_HOME/edgeclip, else ~/.cache/edgeclip.

    Works without $HOME: falls back to a folder of this user in the system's temporary directory.
    """
    if named := os.environ.get("EDGECLIP_CACHE"):
        return Path(named)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "edgeclip"
    try:
        return Path.home() / ".cache" / "edgeclip"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"edgeclip-{os.getuid()}"
