"""NVIDIA GPUs of desktops and servers, through NVML and its package nvidia-ml-py (extra `report`).

Source: docs.nvidia.com/deploy/nvml-api: nvmlDeviceQueries, NvmlClocksEventReasons. Power is in mW (mean of a second from Ampere on),
energy in mJ since the driver was loaded (Volta and newer).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from edgeclip.bench.device.source import COLDEST, HOTTEST, ROOT, Reading
from edgeclip.bench.report import Gpu

NODE = "dev/nvidiactl"
# nvmlClocksEventReason* that hold a clock down. Idle, application clocks, sync boost and display clocks are settings; "reliability"
# is the voltage's own limit, which every chip meets at its highest clock.
SLOWED = {
    0x004: "power cap", 0x008: "hardware slowdown", 0x020: "heat (software)", 0x040: "heat (hardware)", 0x080: "power brake",
    0x200: "board limit",
}  # fmt: skip


def present(root: Path = ROOT) -> bool:
    """Whether a driver that NVML serves is loaded. Cheap."""
    return (root / NODE).exists()


def load() -> Any:
    """The package, started.

    Raises:
        RuntimeError: it is missing, or the driver does not answer; says which and what to do.
    """
    try:
        import pynvml
    except ImportError as error:
        raise RuntimeError("nvidia-ml-py is not installed: pip install 'edgeclip[report]'") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise RuntimeError(f"NVML does not start ({error}): see `nvidia-smi`") from error
    return pynvml


def describe(library: Any) -> tuple[Gpu, ...]:
    """All GPUs, in the order of the bus, as `nvidia-smi` lists them."""
    driver = str(library.nvmlSystemGetDriverVersion())
    return tuple(_describe(library, driver, index) for index in range(library.nvmlDeviceGetCount()))


def _describe(library: Any, driver: str, index: int) -> Gpu:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    clock = _ask(library, lambda: library.nvmlDeviceGetMaxClockInfo(handle, library.NVML_CLOCK_SM))
    limit = _ask(library, lambda: library.nvmlDeviceGetEnforcedPowerLimit(handle))
    return Gpu(
        name=str(library.nvmlDeviceGetName(handle)),
        driver=driver,
        memory_bytes=int(library.nvmlDeviceGetMemoryInfo(handle).total),
        power_limit_w=None if limit is None else limit / 1000,
        max_clock_mhz=clock,
    )


def _ask(library: Any, question: Callable[[], float]) -> float | None:
    """An answer; None where this GPU or driver has none."""
    try:
        return question()
    except library.NVMLError:
        return None


def chosen(library: Any, visible: str | None = None) -> Any:
    """The handle of the GPU that CUDA calls number 0.

    Args:
        library: of `load`.
        visible: as in CUDA_VISIBLE_DEVICES, which is the default.
    Raises:
        RuntimeError: there is none, or CUDA's order and the bus's may differ.
    """
    count = library.nvmlDeviceGetCount()
    first = (
        (os.environ.get("CUDA_VISIBLE_DEVICES", "0") if visible is None else visible).split(",")[0].strip()
    )
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    for handle in handles:
        if first.startswith("GPU-") and str(library.nvmlDeviceGetUUID(handle)).startswith(first):
            return handle
    if not first.isdecimal() or int(first) >= count:
        raise RuntimeError(
            f"CUDA_VISIBLE_DEVICES names {first!r} first, NVML knows {count} GPU(s) and none of that name"
        )
    # CUDA puts the fastest first unless told otherwise; among equal ones it keeps the bus's order
    alike = len({str(library.nvmlDeviceGetName(handle)) for handle in handles}) == 1
    if not alike and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise RuntimeError(
            "GPUs of several kinds: set CUDA_DEVICE_ORDER=PCI_BUS_ID to tell which of them runs"
        )
    return handles[int(first)]


def memory_of(library: Any, processes: Iterable[int]) -> int | None:
    """Bytes of GPU memory that these processes hold; None where NVML does not tell (a container hides their numbers)."""
    mine, held = set(processes), []
    for index in range(library.nvmlDeviceGetCount()):
        handle = library.nvmlDeviceGetHandleByIndex(index)
        for process in library.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid in mine and process.usedGpuMemory is not None:
                held.append(int(process.usedGpuMemory))
    return sum(held) if held else None


class Nvml:
    """One GPU's clocks, temperature, power, energy and what slows it."""

    part: Literal["board", "cpu", "gpu", ""] = "gpu"
    covers = ""
    tells = False

    def __init__(self, library: Any | None = None, root: Path = ROOT) -> None:
        self.not_measured: dict[str, str] = {}
        self._library: Any = None
        self._start: float | None = None
        self._last = 0.0
        if library is None and not present(root):
            self.not_measured["state.gpu"] = (
                f"no NVIDIA driver of a desktop or server is loaded (there is no {root / NODE})"
            )
            return
        try:
            self._library = load() if library is None else library
            self._handle = chosen(self._library)
        except RuntimeError as error:
            self.close()
            self.not_measured["state.gpu"] = str(error)
            return
        self._try()

    def _try(self) -> None:
        """Ask each question once: what this GPU does not answer is not asked again."""
        library, handle = self._library, self._handle
        questions: dict[str, Callable[[], float]] = {
            "gpu clock": lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM),
            "gpu memory clock": lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_MEM),
            "gpu temperature": lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU),
            "gpu load": lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu,
            "power": lambda: library.nvmlDeviceGetPowerUsage(handle),
            "energy": lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle),
            "reasons": lambda: library.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }
        self._questions: dict[str, Callable[[], float]] = {}
        for name, question in questions.items():
            try:
                question()
            except library.NVMLError as error:
                self.not_measured[f"state.{name.replace(' ', '_')}"] = f"NVML on this GPU: {error}"
            else:
                self._questions[name] = question
        if "energy" in self._questions:
            self.covers = "NVML (the GPU alone)"
            self.not_measured.pop("state.power", None)
        elif "power" in self._questions:
            self.covers = "NVML (the GPU alone, its power summed over time)"
            self.not_measured.pop("state.energy", None)
        self.tells = "reasons" in self._questions

    def sample(self) -> Reading:
        """Ask."""
        if self._library is None:
            return Reading()
        told = {name: _ask(self._library, question) for name, question in self._questions.items()}
        gauges = {
            name: float(value)
            for name, value in told.items()
            if name.startswith("gpu ") and value is not None
        }
        if not COLDEST < gauges.get("gpu temperature", 0) < HOTTEST:
            del gauges["gpu temperature"]
        bits = int(told.get("reasons") or 0)
        power = told.get("power")
        return Reading(
            gauges,
            held=tuple(f"GPU: {words}" for bit, words in SLOWED.items() if bits & bit),
            energy_j=self._joules(told.get("energy")),
            power_w=None if power is None else power / 1000,
        )

    def _joules(self, millijoules: float | None) -> float | None:
        """Since the first sample. A counter that falls was set back, by a reload of the driver: what came before is not known."""
        if millijoules is None or millijoules < self._last:
            return None
        self._last = millijoules
        self._start = millijoules if self._start is None else self._start
        return (millijoules - self._start) / 1000

    def close(self) -> None:
        """Stop NVML."""
        if self._library is not None:
            self._library.nvmlShutdown()
            self._library = None


def open_source(root: Path = ROOT) -> Nvml:
    """Ready to be sampled."""
    return Nvml(None, root)
