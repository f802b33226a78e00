"""A Jetson: its release and power mode, clocks and load of GPU and memory, power rails, over-current events. Files only; jtop is not used.

Source: NVIDIA's Jetson Linux developer guides r32 to r38, "Platform Power and Performance": devfreq of the GPU, soctherm_oc's
oc*_event_cnt, clk/emc/rate in debugfs; `nvpmodel -q`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from edgeclip.bench.device import rails
from edgeclip.bench.device.source import ROOT, Reading, known, number, text, whole, why_not

_TREE, _SOC, _RELEASE = "sys/firmware/devicetree/base", "sys/devices/soc0", "etc/nv_tegra_release"
_GPU = re.compile(
    r".*\.(gpu|ga10b|gv11b|gp10b)|gpu-gpc-\d+"
)  # Orin and Nano, Orin on JetPack 5, Xavier, TX2; Thor
_LOADS = ("sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load")  # thousandths
_EMC = ("sys/kernel/debug/bpmp/debug/clk/emc/rate", "sys/kernel/debug/clk/emc/clk_rate")  # Hz
# of Orin's guide; the counters of other boards are given by their name
_OVER_CURRENT = {"oc1": "low voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}


@dataclass(frozen=True)
class Board:
    """What does not change during a run."""

    name: str
    release: str | None  # of Jetson Linux, e.g. "36.4.3"
    power_mode: str | None
    gpu_max_mhz: float | None
    fixed: bool | None  # the GPU's least clock is its most, as `jetson_clocks` sets it


def present(root: Path = ROOT) -> bool:
    """Whether this is a Jetson. Docker hides the device tree, not the rest."""
    if "nvidia,tegra" in (text(root / _TREE / "compatible") or "") or (root / _RELEASE).exists():
        return True
    return text(root / _SOC / "family") == "Tegra"


def describe(root: Path = ROOT) -> Board:
    """The board."""
    known_ = re.search(r"R(\d+)\D+?REVISION: ([\d.]+)", whole(root / _RELEASE) or "")
    folders = _gpu(root)
    bounds = [(number(folder / "min_freq", 1e6), number(folder / "max_freq", 1e6)) for folder in folders]
    readable = bounds and all(low is not None and high is not None for low, high in bounds)
    program = shutil.which("nvpmodel", path=f"{root / 'usr/sbin'}:{root / 'usr/bin'}")
    return Board(
        text(root / _TREE / "model") or text(root / _SOC / "machine") or "NVIDIA Jetson",
        f"{known_[1]}.{known_[2]}" if known_ else None,
        power_mode(program) if program else None,
        max(known(high for _, high in bounds), default=None),
        all(low == high for low, high in bounds) if readable else None,
    )


@cache
def power_mode(program: str) -> str | None:
    """The name that `nvpmodel -q` gives, asked once a process."""
    try:
        said = subprocess.run([program, "-q"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"NV Power Mode: *(\S+)", said)
    return found[1] if found else None


def _gpu(root: Path) -> list[Path]:
    return [
        folder for folder in sorted((root / "sys/class/devfreq").glob("*")) if _GPU.fullmatch(folder.name)
    ]


class Jetson:
    """Clocks, load, rails and over-current events."""

    part: Literal["board", "cpu", "gpu", ""] = "board"

    def __init__(self, root: Path = ROOT) -> None:
        self.not_measured: dict[str, str] = {}
        self._gpus = _gpu(root)
        loads = [*(root / place for place in _LOADS), *(folder / "device/load" for folder in self._gpus)]
        self._load = next((path for path in loads if number(path) is not None), None)
        self._emc = next((root / place for place in _EMC if number(root / place) is not None), None)
        self._events = sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"))
        self.tells = bool(self._events)
        self._rails = rails.find(root)
        found = rails.total(self._watts())
        self.covers = f"rails {found[0]} (the module, without its carrier board)" if found else ""
        if not self._gpus:
            self.not_measured["state.gpu_clock"] = f"no GPU among {root / 'sys/class/devfreq'}/*"
        if self._emc is None:
            self.not_measured["state.memory_clock"] = why_not(root / _EMC[0])
        if not found:
            names = ", ".join(rail.name for rail in self._rails) or "none"
            self.not_measured["state.board_power"] = f"no power rails that cover the module (found: {names})"

    def _watts(self) -> dict[str, float]:
        told = {rail.name: rail.watts() for rail in self._rails}
        return {name: watts for name, watts in told.items() if watts is not None}

    def sample(self) -> Reading:
        """Ask."""
        told = {
            "gpu clock": max(known(number(folder / "cur_freq", 1e6) for folder in self._gpus), default=None),
            "gpu load": number(self._load, 10) if self._load else None,
            "memory clock": number(self._emc, 1e6) if self._emc else None,
        }
        events = {_sentence(path): number(path) for path in self._events}
        power = rails.total(self._watts()) if self.covers else None
        return Reading(
            {name: value for name, value in told.items() if value is not None and value >= 0},
            {name: int(value) for name, value in events.items() if value is not None},
            power_w=power[1] if power else None,
        )

    def close(self) -> None:
        """Nothing is held."""


def _sentence(path: Path) -> str:
    name = path.name.removesuffix("_event_cnt")
    return f"the board slowed its chip for {_OVER_CURRENT.get(name, name)} {{}} times ({name})"


def open_source(root: Path = ROOT) -> Jetson:
    """Ready to be sampled."""
    return Jetson(root)
