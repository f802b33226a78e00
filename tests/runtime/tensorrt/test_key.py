"""The key of this machine: made once, this user's alone, and what it seals."""

from __future__ import annotations

import hashlib
import hmac
import multiprocessing
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeclip.errors import EngineError
from edgeclip.runtime.tensorrt import guard
from edgeclip.runtime.tensorrt.key import key_path, machine_key, read_sealed, write_sealed

KEY = bytes(range(32))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def planted(cache: Path, content: bytes = KEY) -> Path:
    cache.mkdir(mode=0o700)
    path = cache / "engine.key"
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def linked(path: Path, how: Callable[[Path, Path], None]) -> None:
    path.rename(path.with_name("other"))
    how(path.with_name("other"), path)


def test_a_key_is_made_once_and_is_this_users_alone(cache: Path) -> None:
    with pytest.raises(EngineError, match=r"engine\.key: no engine key: .* Run: edgeclip build"):
        machine_key()
    assert not cache.exists(), "looking for a key makes nothing"
    key = machine_key(create=True)
    assert len(key) == 32
    assert machine_key() == machine_key(create=True) == key == (cache / "engine.key").read_bytes()
    assert (mode(cache), mode(cache / "engine.key")) == (0o700, 0o600)


def _make(barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(machine_key(create=True))


@pytest.mark.usefixtures("forks")
def test_processes_at_once_get_the_same_key(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_make, args=(barrier, results)) for _ in range(6)]
    for process in processes:
        process.start()
    keys = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(keys) == 1
    assert keys == {machine_key()}


def test_two_machines_have_two_keys(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = machine_key(create=True)
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "another"))
    assert machine_key(create=True) != first


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.chmod(0o640), "other users may read it (mode 0640). Run: chmod go-rwx"),
        (lambda path: path.chmod(0o604), "other users may read it"),
        (lambda path: path.chmod(0o620), "other users may write to it (mode 0620). Run: chmod go-rwx"),
        (lambda path: path.parent.chmod(0o770), "other users may write in it (mode 0770)"),
        (lambda path: path.parent.chmod(0o1777), "other users may write in it (mode 1777)"),
        (lambda path: path.write_bytes(KEY[:31]), "31 bytes; a key has 32. Remove it, and build"),
        (lambda path: path.write_bytes(b""), "0 bytes; a key has 32"),
        (lambda path: path.write_bytes(KEY + b"\n"), "33 bytes, expected at most 32. Remove it."),
        (lambda path: linked(path, lambda a, b: b.symlink_to(a)), "is a symbolic link. Remove it."),
        (lambda path: linked(path, lambda a, b: b.hardlink_to(a)), "is a link or a special file"),
        (lambda path: linked(path, lambda a, b: b.symlink_to("nowhere")), "is a symbolic link. Remove it."),
        (lambda path: linked(path, lambda a, b: b.mkdir()), "is a link or a special file"),
        (lambda path: linked(path, lambda a, b: os.mkfifo(b)), "is a link or a special file"),
    ],
)
@pytest.mark.parametrize("create", [False, True])
def test_a_key_that_others_could_know_or_replace_is_refused(
    cache: Path, spoil: Callable[[Path], None], said: str, create: bool
) -> None:
    path = planted(cache)
    assert machine_key() == KEY
    spoil(path)
    with pytest.raises(EngineError, match=re.escape(said)) as caught:
        machine_key(create=create)
    assert "\n" not in str(caught.value)
    assert str(cache) in str(caught.value)
    if "Run: " in str(caught.value):  # what it says to do is what helps
        subprocess.run(shlex.split(str(caught.value).rpartition("Run: ")[2]), check=True)
        assert machine_key() == KEY


def test_another_users_key_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = planted(cache)
    mine = os.geteuid()
    monkeypatch.setattr(guard.os, "geteuid", lambda: mine + 1)
    with pytest.raises(EngineError, match=rf"belongs to user {mine}, you are {mine + 1}\. Run: sudo chown"):
        machine_key()
    path.unlink()
    monkeypatch.setattr(guard.os, "geteuid", lambda: mine)
    machine_key(create=True)


def test_the_first_key_closes_a_cache_that_was_open(cache: Path) -> None:
    """Ubuntu's umask makes folders group-writable, and a cache may be older than its key."""
    cache.mkdir()
    cache.chmod(0o775)
    machine_key(create=True)
    assert mode(cache) == 0o755


def test_a_named_key_is_carried_not_made(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fleet's.key"
    monkeypatch.setenv("EDGECLIP_ENGINE_KEY", str(path))
    with pytest.raises(EngineError, match=r"no such engine key, which \$EDGECLIP_ENGINE_KEY names") as caught:
        machine_key(create=True)
    assert not path.exists()
    subprocess.run(["sh", "-c", str(caught.value).rpartition("make one: ")[2]], check=True)
    assert machine_key() == machine_key(create=True) == path.read_bytes()
    assert not cache.exists()
    path.chmod(0o644)
    with pytest.raises(EngineError, match="may read it"):
        machine_key(create=True)


def test_without_home_the_key_lies_in_a_folder_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EDGECLIP_CACHE", "XDG_CACHE_HOME", "HOME", "EDGECLIP_ENGINE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    machine_key(create=True)
    assert key_path().parent == tmp_path / f"edgeclip-{os.getuid()}"
    assert mode(key_path().parent) == 0o700


BODIES = [b"", b"{}", b'{\n "a": 1', b"\0\xff\n", b',\n "mac": "' * 3, os.urandom(4096)]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_seal_is_the_hmac_of_kind_and_body(cache: Path, tmp_path: Path, body: bytes) -> None:
    write_sealed(tmp_path / "a", body, "a kind")
    assert read_sealed(tmp_path / "a", "a kind", 1 << 20) == body
    assert mode(tmp_path / "a") == 0o600
    signed = (6).to_bytes(8, "big") + b"a kind" + body
    mac = hmac.new((cache / "engine.key").read_bytes(), signed, hashlib.sha256).hexdigest()
    assert (tmp_path / "a").read_bytes() == body + f',\n "mac": "{mac}"\n}}\n'.encode()


def test_one_kind_is_not_another(cache: Path, tmp_path: Path) -> None:
    write_sealed(tmp_path / "a", b"body", "kind")
    for kind in ("", "kin", "kindb", "KIND", "kind\0"):
        with pytest.raises(EngineError, match="not sealed with the key of this machine"):
            read_sealed(tmp_path / "a", kind, 1 << 20)
    raw = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(raw[1:])  # "kind" + "body" = "kindb" + "ody"
    with pytest.raises(EngineError, match="not sealed"):
        read_sealed(tmp_path / "a", "kindb", 1 << 20)


def test_every_byte_of_a_sealed_file_counts(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_sealed(path, b'{"size": 12', "kind")
    raw = path.read_bytes()
    changed = [raw[:i] + bytes([raw[i] ^ bit]) + raw[i + 1 :] for i in range(len(raw)) for bit in (1, 0x20)]
    changed += [raw[:i] for i in range(len(raw))] + [raw + b"\n", b"\n" + raw, raw + raw, raw.upper()]
    for each in changed:
        path.write_bytes(each)
        with pytest.raises(EngineError, match=r"foreign, edited or damaged\. Remove it\."):
            read_sealed(path, "kind", 1 << 20)
    path.write_bytes(raw)
    assert read_sealed(path, "kind", 1 << 20) == b'{"size": 12'


def test_a_seal_of_another_machine_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sealed(tmp_path / "a", b"body", "kind")
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "another"))
    machine_key(create=True)
    with pytest.raises(EngineError, match="not sealed"):
        read_sealed(tmp_path / "a", "kind", 1 << 20)
    with pytest.raises(EngineError, match=r"\d+ bytes, expected at most 8"):
        read_sealed(tmp_path / "a", "kind", 8)
