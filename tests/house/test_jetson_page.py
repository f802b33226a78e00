"""The page on Jetson: its tables are the computed ones, its commands exist."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import click
import pytest

from benchmarks.jetson_memory import BOARDS, GIB, MODELS, Board, Model, tables
from edgeclip.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = ("jetson", "triton")


def test_tables_are_computed() -> None:
    found = tables()
    remake = "run: python -m benchmarks.jetson_memory"
    assert (ROOT / "benchmarks/results/jetson_memory.md").read_text() == found, remake
    page = (ROOT / "docs/jetson.md").read_text()
    assert all(table in page for table in found.split("\n\n")), remake


def test_figures_by_hand() -> None:
    """A tower of 10 tokens, 8 wide, with 2 heads: its feed-forward (64) outweighs its attention (32 + 40), or not."""
    small = Model("small", 1, 2, tokens=10, width=8, heads=2, inner=64)
    assert small.activations(3) == 2 * 3 * 10 * (8 + 72)
    assert Model("wide", 1, 2, tokens=10, width=8, heads=2, inner=100).activations(1) == 2 * 10 * 108
    assert small.weights(2) == (2e6, 4e6)
    assert small.to_run(2, batch=0) == (40 << 20) + GIB + 2e6 + 4e6 + 4e6
    assert round(Board("Orin Nano 8", 8, 102).free / GIB, 2) == 6.56
    largest = max(MODELS, key=lambda model: model.image)
    assert largest.to_build() > largest.to_run(2) > BOARDS[0].free


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_the_page_parse(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets.labels").touch()  # options that want an existing file
    text = (ROOT / f"docs/{name}.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += re.findall(r"`(edgeclip [a-z]+ [^`]+)`", text)
    commands = [
        shlex.split(re.sub(r"\s{3,}#.*| > .*", "", line)) for line in lines if line.startswith("edgeclip ")
    ]
    commands = [words for words in commands if len(words) > 2]
    assert len(commands) >= 4
    for words in commands:
        command = cli.get_command(None, words[1])  # type: ignore[arg-type]
        assert command is not None, words
        with contextlib.suppress(click.MissingParameter):  # in running text the bundle is left out
            command.make_context("edgeclip", words[2:])
