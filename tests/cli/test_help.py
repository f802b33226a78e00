"""Help texts, refusals of wrong command lines, and shell completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgeclip.cli import VERBS, cli
from edgeclip.cli.index import VERBS as INDEX_VERBS
from tests.cli.conftest import Edgeclip

COMMANDS = [[verb] for verb in VERBS] + [["labels", name] for name in ("make", "show", "fit")]
COMMANDS += [["bench", name] for name in ("compare", "matrix", "show", "attach")]
COMMANDS += [["evaluate", name] for name in ("detect", "regions")]
COMMANDS += [["index", name] for name in INDEX_VERBS]


def command_of(words: list[str]) -> click.Command:
    found: click.Command = cli
    for word in words:
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), word)
        assert inner is not None
        found = inner
    return found


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_explains_every_argument_and_shows_examples(words: list[str], edgeclip: Edgeclip) -> None:
    said = edgeclip(*words, "--help")
    assert (said.code, said.err) == (0, "")
    assert "Examples:" in said.out
    assert f"  edgeclip {' '.join(words)}" in said.out.partition("Examples:")[2]
    for parameter in command_of(words).params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts} has no help"
            assert re.match(r"[A-Z].*\.$", parameter.help), (
                f"{parameter.opts}: {parameter.help!r} is no sentence"
            )
            assert parameter.opts[-1] in said.out
        else:
            assert (parameter.name or "").upper() in said.out


def test_examples_are_command_lines_that_parse() -> None:
    import shlex

    for words in COMMANDS:
        for line in (command_of(words).epilog or "").splitlines():
            if not line.startswith("  edgeclip ") or "..." in line:
                continue
            typed = re.split(r"\s{3,}| [>|] ", line.strip())[0]
            arguments = shlex.split(typed)[1:]
            depth = 2 if arguments[0] in ("labels", "evaluate", "index") else 1
            # an existing file or folder stands for the one in the example
            there = {".labels": __file__, ".index": str(Path(__file__).parent)}
            arguments = [there.get(Path(a).suffix, a) for a in arguments]
            command_of(arguments[:depth]).make_context("edgeclip", arguments[depth:])


def test_top_level_help_lists_the_verbs_and_exit_codes(edgeclip: Edgeclip) -> None:
    said = edgeclip("--help")
    assert said.code == 0
    for verb in VERBS:
        summary = re.search(rf"^  {verb} +(.+)$", said.out, re.MULTILINE)
        assert summary, verb
        assert not summary[1].endswith("..."), f"{verb}: its first sentence does not fit an 80-column screen"
    assert "130 interrupted" in said.out
    nothing = edgeclip()
    assert nothing.code == 2
    assert nothing.err == said.out


def test_version(edgeclip: Edgeclip) -> None:
    from edgeclip import __version__

    assert edgeclip("--version").out == f"edgeclip, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clasify"], "edgeclip: No such command 'clasify'. Did you mean 'classify'? See `edgeclip --help`."),
        (["zebra"], "edgeclip: No such command 'zebra'. Choose one of sources, export, "),
        (["labels", "mak"], "edgeclip: No such command 'mak'."),
        (["classify"], "edgeclip: Pass either pictures or --boxes FILE. See `edgeclip classify --help`."),
        (["classify", "a.png", "--tresh", "1"], "edgeclip: No such option '--tresh'."),
        (["classify", "a.png", "--threads", "0"], "edgeclip: Invalid value for '--threads': 0 is not in the range"),
        (["classify", "a.png", "--threshold", "2"], "edgeclip: Invalid value for '--threshold': 2"),
        (["classify", "a.png", "--pack", "no.labels"], "edgeclip: Invalid value for '--pack': File 'no.labels'"),
        (["embed"], "edgeclip: Pass either pictures, --text or --boxes FILE. See `edgeclip embed --help`."),
        (["embed", "a.png", "--text", "a"], "edgeclip: Pass either pictures, --text or --boxes FILE."),
        (["embed", "a.png"], "edgeclip: Where to? Pass -o FILE.npz or --json."),
        (["embed", "a.png", "-o", "x.csv"], "edgeclip: -o x.csv: expected a name that ends in .npz or .npy."),
        (["labels", "make", "--label", "a"], "edgeclip: Missing option '-o' / '--output'."),
        (["export", "x"], "edgeclip: Missing option '-o' / '--output'."),
        (["export", "x", "-o", "y", "--store", "f"], "edgeclip: Invalid value for '--store': 'f' is not one of"),
        (["train"], "edgeclip: Missing argument 'RECIPE'."),
        (["verify", "/no/such"], "edgeclip: /no/such: no such bundle. Expected a bundle folder"),
        (["pull", "name"], "edgeclip: name: expected a Hub id of the form ORG/NAME."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_command_lines_get_one_line(arguments: list[str], message: str, edgeclip: Edgeclip) -> None:
    said = edgeclip(*arguments)
    assert said.code == 2
    assert said.line.startswith(message)


@pytest.mark.parametrize(
    ("shell", "mark"),
    [("bash", "complete -o nosort -F"), ("zsh", "#compdef edgeclip"), ("fish", "complete ")],
)
def test_completion_script_of_each_shell(shell: str, mark: str) -> None:
    done = complete({"_EDGECLIP_COMPLETE": f"{shell}_source"})
    assert done.returncode == 0
    assert mark in done.stdout
    assert "_EDGECLIP_COMPLETE" in done.stdout


def test_completion_offers_verbs_and_options() -> None:
    asked = {"_EDGECLIP_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "edgeclip cla"}
    assert complete(asked).stdout.split() == ["plain,classify"]
    asked |= {"COMP_CWORD": "2", "COMP_WORDS": "edgeclip embed --ba"}
    assert complete(asked).stdout.split() == ["plain,--batch-size"]


def complete(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeclip"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
