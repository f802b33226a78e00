"""What every source of the device's state offers, and how a file of the kernel is read: a figure or None, never a guess.

A source is a file of this package with `present(root)`, `describe(root)` and `open_source(root)`; `root` is "/" but for tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

ROOT = Path("/")
COLDEST, HOTTEST = -40.0, 150.0  # degrees Celsius; sensors that are off say -256 (Tegra), -128 or 511


@dataclass(frozen=True)
class Reading:
    """What one source says at one instant."""

    gauges: dict[str, float] = field(default_factory=dict)  # of a series; its last word tells the unit
    events: dict[str, int] = field(default_factory=dict)  # a sentence with {} for how often -> times so far
    held: tuple[str, ...] = ()  # what holds a clock down right now
    energy_j: float | None = None  # counted since any instant; never falls
    power_w: float | None = None  # where nothing counts energy


class Source(Protocol):
    """Something that can be asked again and again, in less than a millisecond."""

    part: Literal["board", "cpu", "gpu", ""]  # what its energy or power covers
    covers: str  # the same in words, e.g. "RAPL package-0, dram"; "" without energy
    tells: bool  # it would see the chip being slowed
    not_measured: dict[str, str]  # field of the report -> why

    def sample(self) -> Reading:
        """Ask."""

    def close(self) -> None:
        """Give back what it holds."""


def text(path: Path) -> str | None:
    """The first 4 KB of a file of the kernel, stripped; None where it is missing, may not be read or has no answer now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, 4096).decode(errors="replace").strip("\0\n\t ")
        finally:
            os.close(descriptor)
    except OSError:
        return None


def whole(path: Path) -> str | None:
    """All of a file in /proc, None where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def number(path: Path, scale: float = 1.0) -> float | None:
    """The integer in a file, divided by `scale`; None for anything else that stands there."""
    found = text(path)
    try:
        return None if found is None else int(found) / scale
    except ValueError:
        return None


def degrees(path: Path) -> float | None:
    """A temperature given in thousandths of a degree, None outside of what a running chip can have."""
    value = number(path, 1000)
    return value if value is not None and COLDEST < value < HOTTEST else None


def known(values: Iterable[float | None]) -> list[float]:
    """Those that are there."""
    return [value for value in values if value is not None]


def why_not(path: Path) -> str:
    """Why a file gives no figure, on one line."""
    try:
        with path.open("rb") as stream:
            content = stream.read(64)
    except PermissionError:
        return f"{path} is readable by root only"
    except FileNotFoundError:
        return f"there is no {path}"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error})"
    return f"{path} holds {content!r}, expected an integer in its usual range"
