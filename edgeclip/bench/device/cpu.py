"""The CPU: which it is, its governor, its clock, and how often its own heat slowed it.

Source: docs.kernel.org/admin-guide/pm/cpufreq.html (policyN/scaling_*, kHz); thermal_throttle/*_throttle_count of
arch/x86/kernel/cpu/mce/therm_throt.c; names of Arm's parts: arch/arm64/include/asm/cputype.h.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeclip.bench.device.source import ROOT, Reading, known, number, text, whole, why_not
from edgeclip.runtime.cpu import cpu_name

_IMPLEMENTERS = {0x41: "ARM", 0x4E: "NVIDIA", 0x51: "Qualcomm", 0x61: "Apple", 0xC0: "Ampere"}
_PARTS = {
    (0x41, 0xD03): "Cortex-A53", (0x41, 0xD04): "Cortex-A35", (0x41, 0xD05): "Cortex-A55", (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72", (0x41, 0xD09): "Cortex-A73", (0x41, 0xD0A): "Cortex-A75", (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1", (0x41, 0xD0D): "Cortex-A77", (0x41, 0xD0E): "Cortex-A76AE", (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78", (0x41, 0xD42): "Cortex-A78AE", (0x41, 0xD44): "Cortex-X1", (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710", (0x41, 0xD48): "Cortex-X2", (0x41, 0xD49): "Neoverse-N2", (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4D): "Cortex-A715", (0x41, 0xD4E): "Cortex-X3", (0x41, 0xD4F): "Neoverse-V2", (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720", (0x41, 0xD82): "Cortex-X4", (0x41, 0xD83): "Neoverse-V3AE", (0x41, 0xD84): "Neoverse-V3",
    (0x41, 0xD85): "Cortex-X925", (0x41, 0xD87): "Cortex-A725", (0x41, 0xD8E): "Neoverse-N3",
    (0x4E, 0x003): "Denver 2", (0x4E, 0x004): "Carmel",
}  # fmt: skip
_CPUS = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Cpu:
    """What does not change during a run."""

    name: str
    governor: str | None  # several: each once, sorted
    fixed: bool | None  # the least clock is the most, as `jetson_clocks` sets it; None: not known


def usable() -> frozenset[int]:
    """Numbers of the logical CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def present(root: Path = ROOT) -> bool:
    """Whether the system tells anything of its CPU."""
    return (root / "proc/cpuinfo").exists()


def describe(root: Path = ROOT, allowed: frozenset[int] | None = None) -> Cpu:
    """Name and governor, of the CPUs that this process may use."""
    folders = _policies(root, allowed)
    governors = {found for folder in folders if (found := text(folder / "scaling_governor"))}
    bounds = [
        (number(folder / "scaling_min_freq"), number(folder / "scaling_max_freq")) for folder in folders
    ]
    readable = bounds and all(low is not None and high is not None for low, high in bounds)
    return Cpu(
        cpu_name(root / "proc/cpuinfo") or _arm(root),
        ", ".join(sorted(governors)) or None,
        all(low == high for low, high in bounds) if readable else None,
    )


def _arm(root: Path) -> str:
    """Arm's /proc/cpuinfo gives numbers: "4 x Cortex-A53, 2 x Cortex-A72"."""
    content = whole(root / "proc/cpuinfo") or ""
    found = re.findall(r"CPU implementer\s*: (0x\w+).*?CPU part\s*: (0x\w+)", content, re.DOTALL)
    kinds = Counter((int(implementer, 16), int(part, 16)) for implementer, part in found)
    return ", ".join(f"{count} x {_part(*kind)}" for kind, count in sorted(kinds.items()))


def _part(implementer: int, part: int) -> str:
    maker = _IMPLEMENTERS.get(implementer, f"implementer {implementer:#x}")
    return _PARTS.get((implementer, part), f"{maker} part {part:#x}")


def _policies(root: Path, allowed: frozenset[int] | None) -> list[Path]:
    """Folders of cpufreq whose clock one of our CPUs runs at."""
    mine = usable() if allowed is None else allowed
    found = sorted((root / _CPUS / "cpufreq").glob("policy*"))
    return [folder for folder in found if mine & _numbers(text(folder / "affected_cpus"))]


def _numbers(listed: str | None) -> set[int]:
    return {int(word) for word in (listed or "").split() if word.isdigit()}


class Clock:
    """The highest clock among our CPUs, which is the loaded ones', and how often heat slowed them."""

    part: Literal["board", "cpu", "gpu", ""] = ""
    covers = ""

    def __init__(self, root: Path = ROOT, allowed: frozenset[int] | None = None) -> None:
        mine = usable() if allowed is None else allowed
        self._clocks = [folder / "scaling_cur_freq" for folder in _policies(root, allowed)]
        self._info = root / "proc/cpuinfo"
        heat = [root / _CPUS / f"cpu{cpu}/thermal_throttle/core_throttle_count" for cpu in sorted(mine)]
        self._heat = [path for path in heat if number(path) is not None]
        self.tells = bool(self._heat)
        self.not_measured: dict[str, str] = {}
        if self._clock() is None:
            self.not_measured["state.cpu_clock"] = self._why(root)
        if not (root / _CPUS / "cpufreq").is_dir() or not self._clocks:
            self.not_measured["device.governor"] = f"there is no {root / _CPUS}/cpufreq/policy*"

    def _why(self, root: Path) -> str:
        if self._clocks:
            return why_not(self._clocks[0])
        missing = f"there is no {root / _CPUS}/cpufreq"
        return (
            f"{missing}, and /proc/cpuinfo of a virtual machine holds the nominal clock"
            if self._guest()
            else missing
        )

    def _guest(self) -> bool:
        return re.search(r"^flags\s*:.*\bhypervisor\b", whole(self._info) or "", re.MULTILINE) is not None

    def _clock(self) -> float | None:
        if self._clocks:
            return max(known(number(path, 1000) for path in self._clocks), default=None)
        content = whole(self._info) or ""
        if re.search(r"^flags\s*:.*\bhypervisor\b", content, re.MULTILINE):
            return None
        return max(
            (float(mhz) for mhz in re.findall(r"^cpu MHz\s*: ([\d.]+)$", content, re.MULTILINE)), default=None
        )

    def sample(self) -> Reading:
        """Ask."""
        clock = None if "state.cpu_clock" in self.not_measured else self._clock()
        gauges = {"cpu clock": clock} if clock is not None and clock > 0 else {}
        counts = known(number(path) for path in self._heat)
        # a count that cannot be read this once would look like a fall
        told = {"heat slowed the CPU's cores {} times (summed over its logical CPUs)": int(sum(counts))}
        return Reading(gauges, told if counts and len(counts) == len(self._heat) else {})

    def close(self) -> None:
        """Nothing is held."""


def open_source(root: Path = ROOT) -> Clock:
    """Ready to be sampled."""
    return Clock(root)
