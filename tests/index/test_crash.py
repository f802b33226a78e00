"""Whatever was acknowledged is there after a writer was killed, whenever that was, and readers notice nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def crash(kind: str, folder: Path, kills: int, seed: int, *fault: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.index.crash_loop", kind, str(folder / "pets.index"), str(kills), str(seed), *fault],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


SLOW = pytest.mark.parity


@pytest.mark.parametrize(
    ("kind", "kills"),
    [("store", 12), pytest.param("store", 200, marks=SLOW), pytest.param("index", 200, marks=SLOW)],
)
def test_a_killed_writer_loses_nothing(tmp_path: Path, kind: str, kills: int) -> None:
    run = crash(kind, tmp_path, kills, seed=kills)
    assert run.returncode == 0, run.stderr
    seen: dict[str, Any] = json.loads(run.stdout)
    assert seen["done"] >= kills  # the test has seen something
    assert seen["unfinished"] > 0
    assert seen["states"] > 0


@pytest.mark.parity
@pytest.mark.parametrize("fault", ["forgets", "in place"])
def test_the_test_would_see_it(tmp_path: Path, fault: str) -> None:
    """A writer that acknowledges what is in no file; a manifest that is written where it counts."""
    run = crash("store", tmp_path, 12, 1, fault)
    assert run.returncode == 1
    assert "expected one of" in run.stderr if fault == "forgets" else "index.json" in run.stderr
