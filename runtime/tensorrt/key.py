"""The key of this machine: engines are code, and only what was sealed with this key is loaded.

32 random bytes in `<cache>/engine.key`, made with the first engine and readable by this user only. $EDGECLIP_ENGINE_KEY names another
file, for engines that are built on one machine and carried to devices which hold the same key; that one is never made here.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shlex
from pathlib import Path

from edgeclip.errors import EngineError
from edgeclip.files import cache_folder, write_file
from edgeclip.runtime.tensorrt.guard import OTHERS_WRITE, check_folder, locked, make_private, read_private

VARIABLE = "EDGECLIP_ENGINE_KEY"
BYTES = 32
_SEAL = b',\n "mac": "'  # what stands between the sealed bytes and their HMAC-SHA256


def key_path() -> Path:
    """Where this machine's key lies, or would."""
    return Path(os.environ.get(VARIABLE) or cache_folder() / "engine.key")


def machine_key(*, create: bool = False) -> bytes:
    """The key.

    Args:
        create: make it if it is missing, unless $EDGECLIP_ENGINE_KEY names it.
    Raises:
        EngineError: missing; or others could read, write or replace it; or not a key. Holds the command which mends it.
    """
    path = key_path()
    try:
        return _read(path)
    except FileNotFoundError:
        if os.environ.get(VARIABLE):
            raise EngineError(
                f"{path}: no such engine key, which ${VARIABLE} names. Copy the key of the machine that builds your "
                f"engines, or make one: (umask 077; head -c {BYTES} /dev/urandom > {shlex.quote(str(path))})"
            ) from None
        if not create:
            raise EngineError(
                f"{path}: no engine key: no engine was built on this machine. Run: edgeclip build BUNDLE --target ...; for "
                f"engines that were built elsewhere, name their key in ${VARIABLE}."
            ) from None
    return _make(path)


def write_sealed(path: Path, body: bytes, kind: str) -> None:
    """Write a private file under this machine's seal, whole or not at all; the key is made if there is none.

    Args:
        body: any bytes; a JSON object without its last two, a line feed and a brace, makes the file JSON.
        kind: what it is and what it is for: a file of one kind is refused where another is expected.
    Raises:
        EngineError: the key cannot be made or trusted.
        InputError: the file cannot be written.
    """
    write_file(path, _sealed(machine_key(create=True), body, kind), private=True)


def read_sealed(path: Path, kind: str, most: int) -> bytes:
    """The body of a file that `write_sealed` wrote. Not one byte of it is interpreted before its seal was found true.

    Raises:
        FileNotFoundError: there is none.
        EngineError: no seal of this machine for this kind; or as `read_private`.
    """
    raw = read_private(path, most)
    body = raw.rpartition(_SEAL)[0]
    if not hmac.compare_digest(raw, _sealed(machine_key(), body, kind)):
        raise EngineError(
            f"{path}: not sealed with the key of this machine: foreign, edited or damaged. Remove it."
        )
    return body


def _sealed(key: bytes, body: bytes, kind: str) -> bytes:
    name = kind.encode()
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in (len(name).to_bytes(8, "big"), name, body):  # its length: no byte can move to its neighbour
        mac.update(part)
    return b'%b%b%b"\n}\n' % (body, _SEAL, mac.hexdigest().encode())


def _read(path: Path) -> bytes:
    key = read_private(path, BYTES, secret=True)
    check_folder(path.parent)
    if len(key) != BYTES:
        raise EngineError(
            f"{path}: {len(key)} bytes; a key has {BYTES}. Remove it, and build the engines again."
        )
    return key


def _make(path: Path) -> bytes:
    """Of several processes at once, one makes it and all get the same."""
    folder = path.parent
    if folder.is_dir() and (found := folder.stat()).st_uid == os.geteuid() and found.st_mode & OTHERS_WRITE:
        folder.chmod(found.st_mode & 0o755)  # ours, from before there was a key: Ubuntu's umask is 0002
    make_private(folder)
    with locked(path.with_name(f".{path.name}.lock")):
        if not path.is_symlink() and not path.exists():
            write_file(path, secrets.token_bytes(BYTES), private=True)
    return _read(path)
