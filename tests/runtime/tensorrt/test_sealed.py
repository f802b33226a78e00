"""A sealed folder: another library finds there what it wrote here, and nothing else."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeclip.errors import EngineError
from edgeclip.runtime.tensorrt.sealed import sealed

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    """As a session leaves it."""
    with sealed(tmp_path / "engines") as made:
        (made / "a.engine").write_bytes(b"plan")
        (made / "deep").mkdir()
        (made / "deep" / "b.timing").write_bytes(b"timings")
    return tmp_path / "engines"


def inside(folder: Path) -> list[str]:
    """What the library would find."""
    with sealed(folder) as found:
        every = (path.relative_to(found).as_posix() for path in found.rglob("*") if not path.is_dir())
        return sorted(name for name in every if name not in (".lock", ".sealed.json"))


def test_what_was_written_is_found_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert inside(folder) == inside(folder) == ["a.engine", "deep/b.timing"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert caplog.records == []
    with sealed(folder):
        (folder / "a.engine").write_bytes(b"another plan")
        (folder / "deep" / "b.timing").unlink()
    assert inside(folder) == ["a.engine"]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda folder: (folder / "a.engine").write_bytes(b"plam"),
        lambda folder: (folder / "a.engine").write_bytes(b"plan "),
        lambda folder: (folder / "deep" / "b.timing").write_bytes(b""),
        lambda folder: (folder / "a.engine").unlink(),
        lambda folder: (folder / "a.engine").rename(folder / "c.engine"),
        lambda folder: (folder / "more.engine").write_bytes(b"plan"),
        lambda folder: (folder / ".hidden").write_bytes(b""),
        lambda folder: (folder / "deep" / "deeper").symlink_to("/etc"),
        lambda folder: (folder / "more.engine").symlink_to("a.engine"),
        lambda folder: (
            (folder / "a.engine").rename(folder.parent / "out")
            and (folder / "a.engine").symlink_to(folder.parent / "out")
        ),
        lambda folder: (folder.parent / "out").hardlink_to(folder / "a.engine"),
        lambda folder: (folder / ".sealed.json").write_bytes(b"{}"),
        lambda folder: (folder / ".sealed.json").write_bytes(
            (folder / ".sealed.json").read_bytes().replace(b"a.engine", b"b.engine")
        ),
        lambda folder: (folder.parent / "cache" / "engine.key").write_bytes(bytes(32)),
    ],
)
def test_what_was_not_written_here_is_removed(
    folder: Path, tamper: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    tamper(folder)
    with caplog.at_level(logging.WARNING):
        assert inside(folder) == []
    assert "emptied, its engines will be built again" in caplog.text
    assert Path("/etc/passwd").exists()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".sealed.json"]


def test_what_a_failed_session_left_is_removed(folder: Path) -> None:
    def fail() -> None:
        with sealed(folder):
            (folder / "half.engine").write_bytes(b"ha")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert inside(folder) == []
    fresh = folder.parent / "fresh"

    def fail_at_first() -> None:
        with sealed(fresh):
            (fresh / "half.engine").write_bytes(b"ha")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_at_first()
    assert inside(fresh) == []


def test_what_is_written_after_the_block_is_removed(folder: Path) -> None:
    (folder / "late.engine").write_bytes(b"plan")
    assert inside(folder) == []


def test_a_list_of_another_folder_does_not_count(folder: Path, tmp_path: Path) -> None:
    with sealed(tmp_path / "others") as others:
        (others / "x.engine").write_bytes(b"x")
    inside(folder)
    for path in (folder / "a.engine", folder / "deep" / "b.timing"):
        path.unlink()
    for path in (others / "x.engine", others / ".sealed.json"):
        path.replace(folder / path.name)
    assert inside(folder) == []


def test_a_folder_that_was_never_sealed_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(
        EngineError, match=re.escape("home: holds 'thesis.tex' and no list of what edgeclip keeps")
    ):
        inside(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_a_folder_in_which_others_may_write_is_refused(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(EngineError, match=r"other users may write in it \(mode 0777\)"):
        inside(folder)
    assert (folder / "a.engine").exists()
