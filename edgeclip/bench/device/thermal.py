"""Temperatures, and the kernel's cooling devices that lower clocks.

Source: docs.kernel.org/driver-api/thermal/sysfs-api.html; hwmon/coretemp.html and hwmon/k10temp.html; "Thermal Management" of
NVIDIA's Jetson Linux developer guides (cpu-thermal, tj-thermal, *-throttle-alert, hot-surface-alert).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from edgeclip.bench.device.source import ROOT, Reading, degrees, known, number, text

_CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
# names of zones: Jetson's have changed with each JetPack (CPU-therm, BCPU-therm, cpu-thermal)
_ZONES = {
    "cpu temperature": re.compile(r"x86_pkg_temp|[bm]?cpu.*|soc[-_]thermal", re.IGNORECASE),
    "gpu temperature": re.compile(r"gpu.*", re.IGNORECASE),
    "junction temperature": re.compile(r"tj.*", re.IGNORECASE),
}
# what lowers a clock; fans and batteries are left out. A PC's "Processor" is there but does not see the chip's own protection.
_SLOWS = re.compile(r".*throttle.*|hot-surface-alert|.*cpufreq.*|.*devfreq.*|Processor", re.IGNORECASE)


def present(root: Path = ROOT) -> bool:
    """Whether there is anything to ask."""
    return bool(_temperatures(root) or _cooling(root))


def describe(root: Path = ROOT) -> tuple[str, ...]:
    """The temperatures that can be read."""
    return tuple(sorted(_temperatures(root)))


def _temperatures(root: Path) -> dict[str, list[Path]]:
    """Series -> files; of several the highest counts."""
    found: dict[str, list[Path]] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind = text(zone / "type") or ""
        for series, pattern in _ZONES.items():
            if pattern.fullmatch(kind):
                found.setdefault(series, []).append(zone / "temp")
    chips = [
        path.parent
        for path in sorted((root / "sys/class/hwmon").glob("hwmon*/name"))
        if text(path) in _CPU_CHIPS
    ]
    if files := [file for chip in chips for file in _of_chip(chip)]:
        found["cpu temperature"] = files
    return found


def _of_chip(chip: Path) -> Iterable[Path]:
    """Inputs of a sensor; AMD's Tctl is set off against the truth on some CPUs, which then have a Tdie too."""
    labels = {
        path: text(path.with_name(path.name.replace("_input", "_label")))
        for path in sorted(chip.glob("temp*_input"))
    }
    return [path for path, label in labels.items() if label != "Tctl" or "Tdie" not in labels.values()]


def _cooling(root: Path) -> dict[Path, str]:
    """File of the state -> name of what slows."""
    found = {
        folder / "cur_state": text(folder / "type") or ""
        for folder in (root / "sys/class/thermal").glob("cooling_device*")
    }
    return {path: kind for path, kind in sorted(found.items()) if _SLOWS.fullmatch(kind)}


class Thermal:
    """Temperatures, and what cools by slowing."""

    part: Literal["board", "cpu", "gpu", ""] = ""
    covers = ""

    def __init__(self, root: Path = ROOT) -> None:
        self._files, self._cooling = _temperatures(root), _cooling(root)
        self.tells = any(kind != "Processor" for kind in self._cooling.values())
        self.not_measured: dict[str, str] = {}
        if "cpu temperature" not in self.sample().gauges:
            places = f"{root / 'sys/class/thermal'} and {root / 'sys/class/hwmon'}"
            self.not_measured["state.cpu_temperature"] = f"no sensor of the CPU in {places} gives a figure"

    def sample(self) -> Reading:
        """Ask."""
        hottest = {series: known(degrees(path) for path in paths) for series, paths in self._files.items()}
        held = {kind for path, kind in self._cooling.items() if (number(path) or 0) > 0}
        return Reading(
            {series: max(values) for series, values in hottest.items() if values}, held=tuple(sorted(held))
        )

    def close(self) -> None:
        """Nothing is held."""


def open_source(root: Path = ROOT) -> Thermal:
    """Ready to be sampled."""
    return Thermal(root)
