"""Energy of an x86 CPU by its own counter: packages and their memory.

Source: docs.kernel.org/power/powercap/powercap.html (energy_uj, max_energy_range_uj). AMD's counters stand in intel-rapl too.
Since CVE-2020-8694 only root reads them, unless the machine's owner says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgeclip.bench.device.source import ROOT, Reading, number, text, why_not

_ZONES = "sys/class/powercap"


def present(root: Path = ROOT) -> bool:
    """Whether the CPU counts its energy and the kernel shows it."""
    return bool(_zones(root))


def describe(root: Path = ROOT) -> str:
    """What the counters cover, e.g. "package-0, dram"."""
    return ", ".join(name for name, _ in _zones(root))


def _zones(root: Path) -> list[tuple[str, Path]]:
    """Packages, and the memory beside each. "core" and "uncore" lie within the package, "psys" around all: neither may be added."""
    names = [(text(folder / "name") or "", folder) for folder in sorted((root / _ZONES).glob("intel-rapl:*"))]
    return [(name, folder) for name, folder in names if name.startswith("package-") or name == "dram"]


class Rapl:
    """Sums the counters and undoes their wrapping around."""

    part: Literal["board", "cpu", "gpu", ""] = "cpu"
    tells = False

    def __init__(self, root: Path = ROOT) -> None:
        zones = _zones(root)
        self._files = [folder / "energy_uj" for _, folder in zones]
        self._ranges = [number(folder / "max_energy_range_uj") for _, folder in zones]
        self._last: list[float] | None = None
        self._total = 0.0  # microjoules since the first sample
        self.not_measured: dict[str, str] = {}
        self.covers = f"RAPL {describe(root)}" if zones else ""
        if not zones:
            self.not_measured["state.cpu_power"] = f"there is no {root / _ZONES}/intel-rapl:*"
        for path in (
            file for folder in zones for file in (folder[1] / "energy_uj", folder[1] / "max_energy_range_uj")
        ):
            if number(path) is None:
                self.not_measured.setdefault("state.cpu_power", _advice(path))
                self.covers = ""

    def sample(self) -> Reading:
        """Ask. A counter that fails once is bridged by the next."""
        now = [number(path) for path in self._files] if self.covers else []
        values = [value for value in now if value is not None and value >= 0]
        if not values or len(values) != len(self._files):
            return Reading()
        for new, old, most in zip(values, self._last or values, self._ranges, strict=True):
            self._total += new - old + (most or 0 if new < old else 0)
        self._last = values
        return Reading(energy_j=self._total / 1e6)

    def close(self) -> None:
        """Nothing is held."""


def _advice(path: Path) -> str:
    reason = why_not(path)
    return f"{reason} (CVE-2020-8694): run as root, or sudo chmod a+r it" if "root only" in reason else reason


def open_source(root: Path = ROOT) -> Rapl:
    """Ready to be sampled."""
    return Rapl(root)
