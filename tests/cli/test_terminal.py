"""What a person at a terminal sees while a verb works: a progress bar, notes above it, and the end of an interrupted run."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import save_picture

LONG = "cat " * 20


def read_all(terminal: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # how Linux tells that the other side is closed
            part = b""
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


def start(arguments: list[object]) -> tuple[subprocess.Popen[str], int]:
    """The command with stderr on a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeclip", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "300"},
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # a job in the background ignores it
    )
    os.close(theirs)
    return process, ours


@pytest.fixture
def many(tmp_path: Path) -> Path:
    for i in range(9):
        save_picture(tmp_path / f"many/{i}.png", i)
    return tmp_path / "many"


def test_progress_bar_with_notes_above_it(many: Path, toy: Path) -> None:
    process, terminal = start(["classify", many, "-b", toy, "--label", LONG, "--label", "a dog"])
    seen = read_all(terminal)
    assert process.wait() == 0
    assert "9/9" in seen
    # the start of a line, or a line just erased, may come before a note: a bar may not
    before = seen.partition("edgeclip: 1 of 2 texts")[0]
    assert re.search(r"[\r\n]$|\x1b\[2K$", before), repr(before[-80:])


def test_no_progress_bar_for_programs(many: Path, toy: Path) -> None:
    process, terminal = start(["classify", many, "-b", toy, "--label", "a dog", "--json"])
    assert read_all(terminal) == ""
    assert process.wait() == 0


def test_interrupted_run_exits_130_with_one_word(many: Path, toy: Path) -> None:
    for i in range(3000):
        os.link(many / "0.png", many / f"x{i}.png")
    process, terminal = start(["embed", many, "-b", toy, "--json", "--batch-size", "1"])
    assert process.stdout is not None
    assert process.stdout.readline().startswith('{"path"')
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert read_all(terminal).split() == ["edgeclip:", "interrupted"]
    assert process.wait() == 130
