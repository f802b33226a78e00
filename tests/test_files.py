"""Whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeclip.errors import InputError
from edgeclip.files import cache_folder, leftovers, new_folder, write_file


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    write_file(target, "old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match=r"a\.txt: cannot be written \(disk full\)"):
        write_file(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_pipe_and_an_open_file_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_file(pipe, "one")
    assert os.read(reader, 10) == b"one"
    assert pipe.is_fifo()
    os.close(reader)
    with (tmp_path / "out").open("w") as out:  # as the shell opens it for /dev/stdout
        out.write("before ")
        out.flush()
        write_file(Path(f"/proc/self/fd/{out.fileno()}"), "after")
    assert (tmp_path / "out").read_text() == "before after"


def test_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:

    def fail_half_way(overwrite: bool = False) -> None:
        with new_folder(tmp_path / "out", overwrite=overwrite) as scratch:
            (scratch / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as scratch:
        (scratch / "file").write_text("1")
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="already exists"), new_folder(tmp_path / "out"):
        pass
    with pytest.raises(RuntimeError):
        fail_half_way(overwrite=True)
    assert (tmp_path / "out/file").read_text() == "1"
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match="already exists"), new_folder(tmp_path / "link"):
        pytest.fail("a link that leads nowhere is there too")
    with new_folder(tmp_path / "link", overwrite=True):
        pass
    (tmp_path / "link").rmdir()  # a folder now
    with new_folder(tmp_path / "out", overwrite=True) as scratch:
        (scratch / "file").write_text("2")
    assert (tmp_path / "out/file").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, sys
from pathlib import Path
from edgeclip.files import new_folder, write_file
place = Path(sys.argv[1])
os.replace = os.rename = Path.replace = lambda *_: os._exit(9)  # at the last moment
with new_folder(place, overwrite=True) as scratch:
    if sys.argv[2] == "folder":
        os._exit(9)
    if sys.argv[2] == "nested":
        with new_folder(scratch, overwrite=True):
            os._exit(9)
    if sys.argv[2] == "file":
        write_file(place, "half")
"""


def test_what_killed_processes_leave_is_known(tmp_path: Path) -> None:
    place = tmp_path / "a.b"
    assert leftovers(tmp_path / "nowhere" / "a.b") == []
    place.mkdir()
    others = {place, *(tmp_path / name for name in (".a.b", ".a.b.json", ".aXb.12345678", ".a.b.old", "x.a.b.12345678"))}  # fmt: skip
    for other in others - {place}:
        other.write_text("somebody's")
    for count, kind in enumerate(("folder", "nested", "retired", "file"), 1):
        done = subprocess.run([sys.executable, "-c", KILLED, str(place), kind], check=False)
        assert done.returncode == 9
        assert len(leftovers(place)) > count - 1
    assert {*tmp_path.iterdir()} - {*leftovers(place)} == others


def test_cache_folder_without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGECLIP_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache_folder().name.startswith("edgeclip-")


def test_a_private_file_is_this_users_alone(tmp_path: Path) -> None:
    write_file(tmp_path / "open", memoryview(b"a"))
    write_file(tmp_path / "private", memoryview(b"a"), private=True)
    assert (tmp_path / "private").read_bytes() == b"a"
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "open").stat().st_mode & 0o044
