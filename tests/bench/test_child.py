"""Fresh processes find the modules that this one finds, wherever the user stands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeclip.bench.child import accepted, program, refusal
from edgeclip.errors import InputError


def test_a_file_in_the_users_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the user\\'s own json.py was run')")
    elsewhere = str(tmp_path / "modules of jürgen's")  # a path that only this process knows
    monkeypatch.setattr(sys, "path", [*filter(None, sys.path), elsewhere])
    done = subprocess.run(
        program("import json; print(json.dumps(sys.path))"), cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.stderr == ""
    assert json.loads(done.stdout) == sys.path


def test_what_libraries_print_does_not_reach_the_answer() -> None:
    lines = "import os; from edgeclip.bench.child import answers\nwith answers() as stream: print('noise'); os.write(1, b'more'); stream.write('7')"
    done = subprocess.run(program(lines), capture_output=True, text=True, check=True)
    assert done.stdout == "7"
    assert "noise" in done.stderr
    assert "more" in done.stderr


def test_an_error_arrives_as_it_was() -> None:
    with pytest.raises(InputError, match=r"^pixels: expected 3$"):
        accepted(json.loads(json.dumps(refusal(InputError("pixels: expected 3")))))
    assert accepted([5]) == [5]
