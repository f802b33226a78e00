"""The Dockerfiles, which no machine of ours could build: what can be wrong with them without Docker. (hadolint 2.15 finds nothing.)"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
Instruction = tuple[str, str]  # e.g. ("FROM", "python:3.11 AS wheel")


def instructions(text: str) -> list[Instruction]:
    """Comments left out, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()
    ]


def complaints(text: str, root: Path = ROOT) -> list[str]:
    """What is wrong with one Dockerfile."""
    found, stages = [], []
    steps = instructions(text)
    defaults = dict(value.split("=", 1) for word, value in steps if word == "ARG" and "=" in value)
    ignored = ignore_rules(root)
    for word, value in steps:
        if word == "FROM":
            image = re.sub(r"\$\{(\w+)\}", lambda m: defaults.get(m[1], ""), value.split()[0])
            stages.append(value.split()[-1])
            if not re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", image) or image.endswith(":latest"):
                found.append(f"{image}: no exact tag")
        if word in ("COPY", "ADD") and "--from=" not in value:
            for name in value.split()[:-1]:
                if not (root / name).exists():
                    found.append(f"{name}: does not exist")
                elif not any(re.fullmatch(rule, name) for rule in ignored):
                    found.append(f"{name}: .dockerignore keeps it out")
        for stage in re.findall(r"(?:--from=|from=)(\w+)", value):
            if stage not in stages:
                found.append(f"{stage}: no such stage before")
    users = [value for word, value in steps if word == "USER"]
    if not users or users[-1] in ("0", "root"):
        found.append("runs as root")
    for needed in ("HEALTHCHECK", "ENTRYPOINT"):
        if needed not in dict(steps):
            found.append(f"no {needed}")
    return found + extras(defaults.get("EXTRAS", ""))


def ignore_rules(root: Path) -> list[str]:
    """What .dockerignore lets through."""
    lines = (root / ".dockerignore").read_text().splitlines()
    return [line[1:].replace(".", r"\.").replace("*", ".*") for line in lines if line.startswith("!")]


def extras(names: str) -> list[str]:
    """Those that pyproject.toml does not have."""
    tomllib = pytest.importorskip("tomllib")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [f"{name}: no such extra" for name in names.split(",") if name and name not in known]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_dockerfiles(path: Path) -> None:
    assert len(FILES) == 2
    text = path.read_text()
    assert complaints(text) == []
    assert "torch" not in text
    steps = dict(instructions(text))
    assert steps["ENTRYPOINT"] == '["edgeclip"]'
    (pip,) = (value for word, value in instructions(text) if word == "RUN" and "pip install" in value)
    assert "--no-cache-dir" in pip
    files = re.findall(r"-c (\S+)", pip)
    copied = [value for word, value in instructions(text) if word == "COPY" and "constraints" in value]
    assert files
    assert all(Path(file).name in str(copied) for file in files)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_their_examples_are_command_lines(path: Path) -> None:
    """The comments say how to build and run; what they ask of edgeclip must exist."""
    from edgeclip.cli import VERBS, cli

    comment = "\n".join(
        line[1:] for line in path.read_text().split("FROM")[0].splitlines() if line.startswith("#")
    )
    runs = re.findall(r"docker run .*", re.sub(r"\\\n\s*", "", comment))
    assert runs
    for line in runs:
        words = shlex.split(line)
        image = max(i for i, word in enumerate(words) if word.startswith("edgeclip") and "/" not in word)
        verb, *arguments = words[image + 1 :]
        if verb in VERBS:
            command = cli.get_command(None, verb)  # type: ignore[arg-type]
            assert command is not None
            command.make_context("edgeclip", arguments)
        else:
            assert verb == "build", f"{verb}: no such command"
    assert set(re.findall(r"docker build -f (\S+)", comment)) == {f"docker/{path.name}"}


GOOD = """
ARG BASE=python:3.11.14-slim
FROM ${BASE} AS wheel
FROM python:3.11.14-slim
ARG EXTRAS=cpu
COPY LICENSE \\
  README.md ./
COPY --from=wheel /a /b
HEALTHCHECK CMD true
USER 10001
ENTRYPOINT ["edgeclip"]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", "", []),
        ("=python:3.11.14-slim", "=python", ["python: no exact tag"]),
        ("=python:3.11.14-slim", "=python:latest", ["python:latest: no exact tag"]),
        ("LICENSE", "LICENCE", ["LICENCE: does not exist"]),
        ("README.md", "Makefile", ["Makefile: .dockerignore keeps it out"]),
        ("--from=wheel", "--from=whell", ["whell: no such stage before"]),
        ("USER 10001", "USER root", ["runs as root"]),
        ("USER 10001\n", "", ["runs as root"]),
        ("HEALTHCHECK CMD true\n", "", ["no HEALTHCHECK"]),
        ("EXTRAS=cpu", "EXTRAS=cpu,tpu", ["tpu: no such extra"]),
    ],
)
def test_the_checker(old: str, new: str, said: list[str]) -> None:
    assert complaints(GOOD.replace(old, new) if old else GOOD) == said


@pytest.mark.parametrize(("version", "extra"), [("3.10", "cpu"), ("3.12", "cpu"), ("3.10", "tensorrt")])
def test_the_boards_constraints_pin_what_the_image_installs(version: str, extra: str) -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "docker/constraints-jetson.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    here = {
        pin.name: pin for pin in pins if not pin.marker or pin.marker.evaluate({"python_version": version})
    }
    assert len(here) == sum(
        1 for pin in pins if not pin.marker or pin.marker.evaluate({"python_version": version})
    )
    for line in [*project["dependencies"], *project["optional-dependencies"][extra]]:
        wanted = Requirement(line)
        (pinned,) = here[wanted.name].specifier
        assert pinned.operator == "=="
        assert wanted.specifier.contains(pinned.version), line
    cuda = next(iter(here["cuda-bindings"].specifier)).version
    assert cuda.startswith("12." if version == "3.10" else "13."), "of the board's driver"
