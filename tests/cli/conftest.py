"""The toy bundle, a few pictures, and a way to run one command line and see what it said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeclip.cli import run
from tests.runtime.toy import make_bundle, picture


@dataclass(frozen=True)
class Said:
    """What one command line gave."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every line of stdout, which must be one JSON object."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def record(self) -> dict[str, Any]:
        """The only object on stdout."""
        (found,) = self.records
        return found

    @property
    def line(self) -> str:
        """The only line on stderr, with nothing on stdout."""
        assert self.out == ""
        (found,) = self.err.splitlines()
        return found


Edgeclip = Callable[..., Said]


@pytest.fixture
def edgeclip(capsys: pytest.CaptureFixture[str]) -> Edgeclip:
    """Runs `edgeclip ARGUMENTS...` in this process."""

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle; not to be changed."""
    return make_bundle(tmp_path_factory.mktemp("sealed") / "toy").root


@pytest.fixture
def toy(sealed: Path, tmp_path: Path) -> Path:
    """A copy of the toy bundle."""
    return Path(shutil.copytree(sealed, tmp_path / "toy"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three pictures, one of them in a folder below, and a file that is none."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(["a.png", "b.JPG", "below/c.bmp"]):
        save_picture(folder / name, seed)
    (folder / "notes.txt").write_text("no picture")
    return folder


def save_picture(path: Path, seed: int = 0) -> Path:
    """Write one small picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(path)
    return path
