"""A folder of engines that another library reads and writes itself, under this machine's seal.

onnxruntime's TensorRT providers deserialise whatever lies in their cache folder. Here they find only what they wrote on this machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgeclip.errors import EngineError
from edgeclip.files import sha256_file
from edgeclip.runtime.tensorrt.guard import locked, make_private
from edgeclip.runtime.tensorrt.key import read_sealed, write_sealed

LIST, LOCK = ".sealed.json", ".lock"
KIND = "edgeclip.sealed"
MAX_LIST_BYTES = 1 << 20

log = logging.getLogger(__name__)


@contextlib.contextmanager
def sealed(folder: Path) -> Iterator[Path]:
    """Hold a folder while a session is made: before, what this machine did not write is removed; after, what was written is sealed.

    One process at a time. What is written after the block ends, or by a block that fails, is not sealed: the next block starts empty.

    Args:
        folder: for the library alone; made if it is missing.
    Raises:
        EngineError: others may write in it; it cannot be written; the key cannot be trusted; or it holds files and was never
            sealed, so that it may be anybody's: those are left alone.
        InputError: the list cannot be written.
    """
    make_private(folder)
    with locked(folder / LOCK):
        if why := _broken(folder):
            log.warning("%s: %s: emptied, its engines will be built again", folder, why)
            _empty(folder)
        if not (folder / LIST).exists():
            _write(folder)  # from now on what lies here is ours to empty
        yield folder
        _write(folder)


def _broken(folder: Path) -> str:
    """What is wrong with the folder; "": nothing."""
    try:
        body = read_sealed(folder / LIST, f"{KIND} {folder.name}", MAX_LIST_BYTES)
    except FileNotFoundError:
        if found := next(_entries(folder), None):
            raise EngineError(
                f"{folder}: holds {found.name!r} and no list of what edgeclip keeps there. Choose an empty folder."
            ) from None
        return ""
    except EngineError as error:
        return str(error)
    return (
        "" if _hashes(folder) == json.loads(body + b"\n}").get("files") else "was changed since it was sealed"
    )


def _hashes(folder: Path) -> dict[str, str | None]:
    """SHA-256 of each file; None for what is no plain file, which no list holds."""
    found = {path.relative_to(folder).as_posix(): path for path in _entries(folder)}
    return {
        name: sha256_file(path)
        if path.is_file() and not path.is_symlink() and path.lstat().st_nlink == 1
        else None
        for name, path in sorted(found.items())
    }


def _write(folder: Path) -> None:
    files = {name: digest for name, digest in _hashes(folder).items() if digest}
    body = json.dumps({"files": files}, indent=1).removesuffix("\n}").encode()
    write_sealed(folder / LIST, body, f"{KIND} {folder.name}")


def _entries(folder: Path) -> Iterator[Path]:
    """All but our own and plain folders."""
    for path in folder.rglob("*"):
        if not (path.parent == folder and path.name in (LIST, LOCK)) and (
            path.is_symlink() or not path.is_dir()
        ):
            yield path


def _empty(folder: Path) -> None:
    try:
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    except OSError as error:
        raise EngineError(
            f"{folder}: cannot be emptied ({error.strerror or error}). Run: rm -r {shlex.quote(str(folder))}"
        ) from error
