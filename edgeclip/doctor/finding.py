"""One line of the report, and how the machine is asked."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    topic: str
    ok: bool
    detail: str
    command: str = ""  # what to type to get it; "" when nothing is missing


def version_of(*packages: str) -> str | None:
    """The version of the first of these distributions that is installed; None: none is."""
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def answer(command: Sequence[str]) -> str | None:
    """What a program says; None where there is no such program, it fails, or takes 10 s."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
