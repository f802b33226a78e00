"""A line of `tegrastats`, of JetPack 4 to 7: for boards whose power rails cannot be read as files.

Source: docs.nvidia.com/jetson, "tegrastats Utility". What differs: JetPack 4 writes powers without a unit and both values of a rail
as now/average, JetPack 7 a third one, the highest; clocks of several clusters stand in brackets; Thor gives no load of its GPU.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeclip.bench.device import rails
from edgeclip.bench.device.source import COLDEST, HOTTEST, ROOT, Reading

PERIOD_MS = 500
STALE_S = 3.0  # a line older than this says nothing of now

_MEMORY = re.compile(r"\bRAM (\d+)/(\d+)MB")
_CPUS = re.compile(r"\bCPU \[([^\]]*)\](?:@(\d+))?")
_CORE = re.compile(r"(\d+)%(?:@(\d+))?")
_ENGINE = r"\b{}(?: (\d+)%)?(?:(?:@| @)\[?([\d,]+)\]?)?(?=\s|$)"
_EMC, _GPU = re.compile(_ENGINE.format("EMC_FREQ")), re.compile(_ENGINE.format("GR3D_FREQ"))
_TEMPERATURE = re.compile(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C\b")
_RAIL = re.compile(r"\b([A-Za-z]\w*) (-?\d+)(?:mW)?/(-?\d+)(?:mW)?(?:/(-?\d+)(?:mW)?)?(?=\s|$)")


@dataclass(frozen=True)
class Line:
    """What one line says; None and {} for what it does not."""

    memory_bytes: int | None  # in use
    memory_total_bytes: int | None
    cpu_load: tuple[float | None, ...]  # percent, of each; None: switched off
    cpu_mhz: float | None  # the highest
    emc_load: float | None  # percent
    emc_mhz: float | None
    gpu_load: float | None  # percent
    gpu_mhz: float | None  # the highest of its clusters
    temperatures: dict[str, float] = field(default_factory=dict)  # by name in lower case
    rails_w: dict[str, float] = field(default_factory=dict)  # now, not the average


def parse(line: str) -> Line | None:
    """Read one line; None where it is no line of tegrastats."""
    memory, cpus = _MEMORY.search(line), _CPUS.search(line)
    if memory is None or cpus is None:
        return None
    cores = [_CORE.match(core.strip()) for core in cpus[1].split(",")]
    clocks = [float(clock) for clock in [*(core[2] for core in cores if core), cpus[2]] if clock]
    heat = {name.lower(): float(value) for name, value in _TEMPERATURE.findall(line)}
    emc_load, emc_mhz = _engine(_EMC, line)
    gpu_load, gpu_mhz = _engine(_GPU, line)
    return Line(
        int(memory[1]) << 20, int(memory[2]) << 20,
        tuple(float(core[1]) if core else None for core in cores), max(clocks, default=None),
        emc_load, emc_mhz, gpu_load, gpu_mhz,
        {name: value for name, value in heat.items() if COLDEST < value < HOTTEST},
        {found[1]: int(found[2]) / 1000 for found in _RAIL.finditer(line) if found[1] != "NC"},
    )  # fmt: skip


def _engine(pattern: re.Pattern[str], line: str) -> tuple[float | None, float | None]:
    """(load in percent, MHz) of a part of the chip."""
    if (found := pattern.search(line)) is None:
        return None, None
    clocks = [float(clock) for clock in (found[2] or "").split(",") if clock]
    return float(found[1]) if found[1] else None, max(clocks, default=None)


def reading(line: Line) -> Reading:
    """As the other sources have it."""
    heat = line.temperatures
    cpu = [value for name, value in heat.items() if name.endswith("cpu")]  # TX2 has bcpu and mcpu
    gauges = {
        "cpu clock": line.cpu_mhz, "gpu clock": line.gpu_mhz, "gpu load": line.gpu_load, "memory clock": line.emc_mhz,
        "cpu temperature": max(cpu, default=None), "gpu temperature": heat.get("gpu"), "junction temperature": heat.get("tj"),
    }  # fmt: skip
    power = rails.total(line.rails_w)
    return Reading({k: v for k, v in gauges.items() if v is not None}, power_w=power[1] if power else None)


def present(root: Path = ROOT) -> bool:
    """Whether the program is installed."""
    return shutil.which("tegrastats", path=f"{root / 'usr/bin'}:{root / 'usr/local/bin'}") is not None


def describe(root: Path = ROOT) -> str:
    """Where it is, "" without."""
    return shutil.which("tegrastats", path=f"{root / 'usr/bin'}:{root / 'usr/local/bin'}") or ""


class Tegrastats:
    """Runs the program and keeps its newest line. It is a process beside the measured one: only where files tell nothing."""

    part: Literal["board", "cpu", "gpu", ""] = "board"
    tells = False

    def __init__(self, root: Path = ROOT) -> None:
        self.covers, self.not_measured = "", dict[str, str]()
        self._newest = deque[tuple[float, Line]](maxlen=1)
        command = [describe(root), "--interval", str(PERIOD_MS)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="tegrastats", daemon=True)
        self._thread.start()
        waited_s = 4 * PERIOD_MS / 1000
        if not self._first.wait(waited_s):
            self.not_measured["state.board_power"] = f"{command[0]} gives no line within {waited_s:g} s"
        elif (found := rails.total(self._newest[0][1].rails_w)) is None:
            self.not_measured["state.board_power"] = f"{command[0]} gives no rails that cover the module"
        else:
            self.covers = f"tegrastats {found[0]} (the module, without its carrier board)"

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed while it waits
            for text in self._process.stdout:
                if (line := parse(text)) is not None:
                    self._newest.append((time.monotonic(), line))
                    self._first.set()

    def sample(self) -> Reading:
        """The newest line."""
        if not self._newest or time.monotonic() - self._newest[0][0] > STALE_S:
            return Reading()
        return reading(self._newest[0][1])

    def close(self) -> None:
        """End the program."""
        self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(2)
        if self._process.stdout:
            self._process.stdout.close()


def open_source(root: Path = ROOT) -> Tegrastats:
    """Started, with a first line where it comes within two seconds."""
    return Tegrastats(root)
