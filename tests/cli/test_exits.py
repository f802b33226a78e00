"""Exit codes of what goes wrong, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import edgeclip as library
from tests.cli.conftest import Edgeclip, save_picture
from tests.runtime.toy import picture


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let every load of a bundle end like this."""

    def load(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("edgeclip.runtime.model.load", load)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (library.InputError("a.png: two\n  lines"), 2, "edgeclip: a.png: two lines\n"),
        (library.MissingExtraError("x"), 2, "edgeclip: x\n"),
        (library.CheckFailed("x"), 1, "edgeclip: x\n"),
        (KeyboardInterrupt(), 130, "\nedgeclip: interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            2,
            "edgeclip: /x: No space left on device\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), 2, "edgeclip: Permission denied\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_become_codes_and_lines(
    error: BaseException, code: int, said: str, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, error)
    got = edgeclip("embed", "--text", "a", "--json")
    assert (got.code, got.err, got.out) == (code, said, "")


@pytest.mark.parametrize("error", [ValueError("surprise"), FileNotFoundError(errno.ENOENT, "surprise")])
def test_a_bug_is_70_with_its_traceback(
    error: Exception, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, error)
    said = edgeclip("embed", "--text", "a", "--json")
    assert said.code == 70
    assert said.err.startswith("Traceback")
    assert "surprise" in said.err
    assert said.err.endswith("edgeclip: this is a bug in edgeclip; please report the lines above.\n")


def test_the_process_exits_with_the_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeclip", "verify", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"edgeclip: {tmp_path}: no bundle.json in it.")


def test_broken_exif_is_no_news(toy: Path, tmp_path: Path) -> None:
    broken = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03"
    Image.fromarray(picture(0)).save(tmp_path / "a.jpg", exif=broken)
    command = [sys.executable, "-m", "edgeclip", "embed", str(tmp_path / "a.jpg"), "-b", str(toy), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("options", ["--json", "--top-k 1"])
def test_broken_pipe_is_silent(options: str, photos: Path, toy: Path, tmp_path: Path) -> None:
    """Far more output than a pipe holds, and a reader that goes after one line."""
    paths = [save_picture(tmp_path / f"{'n' * 100}{i}.png", i) for i in range(3)]
    for i in range(600):
        os.link(paths[i % 3], tmp_path / f"{'m' * 180}{i}.png")
    script = (
        f"set -o pipefail; {sys.executable} -m edgeclip classify {tmp_path}/*.png -b {toy} {options}"
        " --labels 'a cat,a dog' | head -n 1"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("place", ["taken/x", "/proc/x"])
@pytest.mark.parametrize("verb", ["embed", "labels make"])
def test_output_that_cannot_be_written(
    place: str, verb: str, toy: Path, tmp_path: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file where a folder should be")
    options = (
        ["--text", "a", "-o", f"{place}.npz"] if verb == "embed" else ["--label", "a", "-o", f"{place}.npz"]
    )
    said = edgeclip(*verb.split(), *options, "-b", toy)
    assert said.code == 2
    assert said.line.startswith(f"edgeclip: {place}.npz: cannot be written (")


@pytest.mark.parametrize("verb", ["embed", "labels make"])
def test_output_is_whole_or_the_old_one(
    verb: str, toy: Path, tmp_path: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out/x.npz"
    options = ["--text", "a cat"] if verb == "embed" else ["--label", "a cat"]
    assert edgeclip(*verb.split(), *options, "-o", output, "-b", toy).code == 0
    before = output.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    said = edgeclip(*verb.split(), *options, "-o", output, "-b", toy)
    assert said.code == 2
    assert said.line == (
        f"edgeclip: {output}: cannot be written (No space left on device). Choose another place, or make room there."
    )
    assert output.read_bytes() == before
    assert [path.name for path in output.parent.iterdir()] == ["x.npz"]


def test_one_that_is_terminated_cleans_up() -> None:
    """Else the processes that `bench` measures in would go on for minutes."""
    code = (
        "import os, subprocess, sys, edgeclip.cli as c\n"
        "def run():\n"
        "    line = f'import os, time; os.kill({os.getpid()}, 15); time.sleep(3)'\n"
        "    try: subprocess.run([sys.executable, '-c', line])\n"
        "    finally: print('cleaned up')\n"
        "c.run = run\n"
        "c.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "cleaned up\n"), done.stderr
