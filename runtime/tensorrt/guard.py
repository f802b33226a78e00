"""Files that nobody but this user can have changed: private folders, files read once, one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from edgeclip.errors import EngineError

OTHERS_WRITE = 0o022
OTHERS = 0o077


def make_private(folder: Path) -> None:
    """Make a folder and its missing parents, mode 0700. Raises EngineError where that fails, or others may write in it."""
    try:
        for each in reversed([folder, *folder.parents]):
            if not each.exists():
                each.mkdir(0o700, exist_ok=True)
    except OSError as error:
        raise EngineError(
            f"{folder}: cannot be made ({error.strerror or error}). Choose another place with $EDGECLIP_CACHE."
        ) from error
    check_folder(folder)


def check_folder(folder: Path) -> None:
    """Refuse a folder in which another user could put files. Raises EngineError that holds the command which mends it."""
    try:
        found = folder.stat()
    except OSError as error:
        raise EngineError(f"{folder}: cannot be read ({error.strerror or error}).") from error
    if not stat.S_ISDIR(found.st_mode):
        raise EngineError(f"{folder}: expected a folder. Remove it, or choose another place.")
    _check_owner(folder, found)
    if found.st_mode & OTHERS_WRITE:
        mine = found.st_uid == os.geteuid()
        mend = f"Run: chmod go-w {_quoted(folder)}" if mine else "Choose a folder of your own."
        raise EngineError(
            f"{folder}: other users may write in it (mode {_mode(found)}), and engines are code. {mend}"
        )


def read_private(path: Path, most: int, *, secret: bool = False) -> bytes:
    """A file's bytes, read once: what was checked is what is returned.

    Args:
        most: bytes; a larger file is refused before it is read.
        secret: refuse a file that others can read, and one of root's.
    Raises:
        FileNotFoundError: there is none.
        EngineError: a link, no plain file, another user's, one that others may write to, or too large.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not block
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:  # ELOOP: a symbolic link
        raise EngineError(f"{path}: {_unreadable(path, error)}. Remove it.") from error
    try:
        _check_private(path, os.fstat(descriptor), most, secret)
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as stream:
            return stream.readall()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror or error}).") from error
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file until the block ends; waits for whoever holds it. Raises EngineError where it cannot be made."""
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise EngineError(
            f"{path}: cannot be written ({error.strerror or error}). Choose another folder, or make room there."
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def _check_private(path: Path, found: os.stat_result, most: int, secret: bool) -> None:
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise EngineError(f"{path}: is a link or a special file; expected a plain file. Remove it.")
    _check_owner(path, found, root=not secret)
    if wrong := found.st_mode & (OTHERS if secret else OTHERS_WRITE):
        what = "write to" if wrong & OTHERS_WRITE else "read"
        raise EngineError(
            f"{path}: other users may {what} it (mode {_mode(found)}). Run: chmod go-rwx {_quoted(path)}"
        )
    if found.st_size > most:
        raise EngineError(f"{path}: {found.st_size} bytes, expected at most {most}. Remove it.")


def _check_owner(path: Path, found: os.stat_result, root: bool = True) -> None:
    me = os.geteuid()
    if found.st_uid != me and not (root and found.st_uid == 0):
        raise EngineError(
            f"{path}: belongs to user {found.st_uid}, you are {me}. Run: sudo chown {me} {_quoted(path)}"
        )


def _unreadable(path: Path, error: OSError) -> str:
    return "is a symbolic link" if path.is_symlink() else f"cannot be read ({error.strerror or error})"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"
