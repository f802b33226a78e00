"""NVML by a stand-in for nvidia-ml-py, whose names and constants are held against the real package."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest

from edgeclip.bench.device import nvml

pynvml = pytest.importorskip("pynvml")


class Stand:
    """NVML of a machine with two GPUs; raises what the real one raises."""

    NVMLError, NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = (
        pynvml.NVMLError, pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU,
    )  # fmt: skip

    def __init__(self, names=("NVIDIA H100 80GB HBM3",), lacks=()):
        self.names, self.lacks = names, lacks
        self.millijoules, self.reasons, self.celsius, self.shut = 5_000_000, 0, 41, 0

    def __getattribute__(self, name):
        if name.startswith("nvml") and name.removeprefix("nvmlDeviceGet") in object.__getattribute__(
            self, "lacks"
        ):
            return self.refuse
        return object.__getattribute__(self, name)

    def refuse(self, *_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlShutdown(self):
        self.shut += 1

    def nvmlSystemGetDriverVersion(self):
        return "580.82.07"

    def nvmlDeviceGetCount(self):
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, handle):
        return self.names[handle]

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}a6b1e8c-0000"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=85_520_809_984, free=1, used=2)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        return {pynvml.NVML_CLOCK_SM: 1980}[kind]

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return {pynvml.NVML_CLOCK_SM: 1755, pynvml.NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetTemperature(self, handle, sensor):
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self.celsius

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=87, memory=20)

    def nvmlDeviceGetPowerUsage(self, handle):
        return 312_500

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self.millijoules

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [
            SimpleNamespace(pid=40, usedGpuMemory=1 << 30),
            SimpleNamespace(pid=41, usedGpuMemory=None),
            SimpleNamespace(pid=42, usedGpuMemory=5),
        ]


def test_the_stand_in_is_as_the_package():
    for name, function in vars(Stand).items():
        if name.startswith("nvml"):
            real = inspect.signature(getattr(pynvml, name))
            want = list(inspect.signature(function).parameters)[1:]
            assert len(want) == len([p for p in real.parameters.values() if p.default is p.empty]), name


def test_words_of_the_reasons():
    names = {
        "SwPowerCap",
        "HwSlowdown",
        "SwThermalSlowdown",
        "HwThermalSlowdown",
        "HwPowerBrakeSlowdown",
        "BoardLimit",
    }
    assert set(nvml.SLOWED) == {getattr(pynvml, f"nvmlClocksThrottleReason{name}") for name in names}
    for name in ("GpuIdle", "ApplicationsClocksSetting", "SyncBoost", "DisplayClockSetting", "Reliability"):
        assert getattr(pynvml, f"nvmlClocksThrottleReason{name}") not in nvml.SLOWED  # no throttling
    assert nvml.SLOWED[pynvml.nvmlClocksThrottleReasonSwPowerCap] == "power cap"
    assert nvml.SLOWED[pynvml.nvmlClocksThrottleReasonHwThermalSlowdown] == "heat (hardware)"


def test_a_gpu():
    (gpu,) = nvml.describe(Stand())
    assert (gpu.name, gpu.driver, gpu.memory_bytes, gpu.power_limit_w, gpu.max_clock_mhz) == (
        "NVIDIA H100 80GB HBM3", "580.82.07", 85_520_809_984, 700, 1980,
    )  # fmt: skip
    assert nvml.describe(Stand(lacks=("EnforcedPowerLimit",)))[0].power_limit_w is None


def test_a_sample():
    library = Stand()
    source = nvml.Nvml(library)
    assert source.not_measured == {}
    assert source.tells
    source.sample()
    library.millijoules += 2_500
    library.reasons = pynvml.nvmlClocksThrottleReasonSwPowerCap | pynvml.nvmlClocksThrottleReasonGpuIdle
    said = source.sample()
    assert said.gauges == {"gpu clock": 1755, "gpu memory clock": 2619, "gpu temperature": 41, "gpu load": 87}
    assert (said.energy_j, said.power_w, said.held) == (2.5, 312.5, ("GPU: power cap",))
    library.celsius, library.millijoules = 255, 10  # no sensor; the driver was loaded anew
    said = source.sample()
    assert "gpu temperature" not in said.gauges
    assert said.energy_j is None
    source.close()
    source.close()
    assert library.shut == 1
    assert source.sample().gauges == {}


def test_what_a_gpu_does_not_tell():
    source = nvml.Nvml(Stand(lacks=("TotalEnergyConsumption", "CurrentClocksThrottleReasons", "Temperature")))
    assert source.covers == "NVML (the GPU alone, its power summed over time)"
    assert not source.tells
    assert source.not_measured["state.gpu_temperature"] == "NVML on this GPU: Not Supported"
    assert source.sample().energy_j is None
    assert source.sample().power_w == 312.5
    dumb = nvml.Nvml(Stand(lacks=("TotalEnergyConsumption", "PowerUsage")))
    assert dumb.covers == ""
    assert {"state.energy", "state.power"} <= set(dumb.not_measured)


def test_which_gpu_runs(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    twins = Stand(("H100", "H100"))
    assert nvml.chosen(twins) == 0
    assert nvml.chosen(twins, "1,0") == 1
    assert nvml.chosen(twins, "GPU-1a6b") == 1
    mixed = Stand(("RTX A4000", "H100"))
    with pytest.raises(RuntimeError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        nvml.chosen(mixed, "0")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert nvml.chosen(mixed, "1") == 1
    for wrong in ("", "7", "-1", "GPU-9", "MIG-1"):
        with pytest.raises(RuntimeError, match="NVML knows 2"):
            nvml.chosen(mixed, wrong)


def test_memory_of_processes():
    assert nvml.memory_of(Stand(), [40, 42]) == (1 << 30) + 5
    assert nvml.memory_of(Stand(), [41]) is None
    assert nvml.memory_of(Stand(), [7]) is None


def test_without_a_driver(tmp_path):
    assert nvml.open_source(tmp_path).not_measured["state.gpu"].startswith("no NVIDIA driver")
    (tmp_path / "dev").mkdir()
    (tmp_path / nvml.NODE).touch()
    if not nvml.present():
        source = nvml.open_source(tmp_path)  # the package is there, the driver's library is not
        assert "NVML does not start" in source.not_measured["state.gpu"]
        assert source.sample().gauges == {}
        source.close()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(RuntimeError, match=r"pip install 'edgeclip\[report\]'"):
        nvml.load()
