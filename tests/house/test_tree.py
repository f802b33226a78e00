"""The tree itself: links, type marker, pinned versions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def plain(requirement: str) -> str:
    """The package's name as the index normalises it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]).lower()


@pytest.mark.parametrize("room", ["export", "runtime", "models"])
def test_rooms_are_relative_links(room: str) -> None:
    """Relative, so that a clone or a copy of the tree works anywhere. `make lean` proves the wheel holds the files."""
    link = ROOT / "edgeclip" / room
    assert link.is_symlink()
    assert link.readlink() == Path("..") / room
    assert (link / "__init__.py").is_file()


def test_types_are_for_users_too() -> None:
    assert (ROOT / "edgeclip/py.typed").read_text() == ""


def test_constraints_pin_everything_that_the_project_names(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
    pinned = {plain(line) for line in lines}
    extras = project["optional-dependencies"].values()
    named = {plain(line) for group in (project["dependencies"], *extras) for line in group} - {"edgeclip"}
    assert len(named) > 15
    assert named - pinned == set()


def test_extras_refer_to_extras(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    asked = {
        name
        for group in extras.values()
        for line in group
        if line.startswith("edgeclip[")  # others have extras of their own
        for name in re.findall(r"[a-z-]+", line.partition(";")[0].partition("[")[2])
    }
    assert asked - extras.keys() == set()
    assert "gpu" not in str(extras["all"]), "onnxruntime and onnxruntime-gpu share one folder"


def test_version_is_the_projects(project: dict[str, Any]) -> None:
    import edgeclip

    assert edgeclip.__version__ == project["version"]


def test_no_file_knows_where_this_tree_lies() -> None:
    """A path of the machine that it was written on would work on no other."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    place = str(ROOT).encode()
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    guilty = [str(path) for path in files if path.is_file() and place in path.read_bytes()]
    assert len(files) > 100
    assert guilty == []
