"""Memory as the system, psutil and a stand-in of NVML count it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclip.bench import memory
from edgeclip.bench.memory import measure_memory, on_device, resident, used_on_gpu
from edgeclip.bench.settings import preset
from edgeclip.bundle import Bundle
from edgeclip.runtime.memory import PROCESS_BYTES, estimate_memory
from tests.bench.test_stages import SHORT, jpegs
from tests.mutants import broken
from tests.runtime.toy import make_bundle

STATUS = "Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t   812 kB\nVmRSS:\t   640 kB\nThreads:\t3\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def test_status_is_read_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(STATUS)
    assert resident(tmp_path / "status") == (640 * 1024, 812 * 1024)
    other = broken(resident, "* 1024", "* 1000")
    assert other(tmp_path / "status") != resident(tmp_path / "status")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_psutil_agrees() -> None:
    psutil = pytest.importorskip("psutil")
    now, most = resident()
    assert now == pytest.approx(psutil.Process().memory_info().rss, rel=0.02)
    assert most is not None
    assert now is not None
    assert most >= now


@pytest.mark.parametrize("text", ["", "VmRSS:\t12 kB\n", "VmHWM:\nVmRSS:\n"])
def test_without_a_status_the_most_is_known_at_least(tmp_path: Path, text: str) -> None:
    (tmp_path / "status").write_text(text)
    now, most = resident(tmp_path / "status")
    assert now is None
    assert most == pytest.approx(resident()[1], rel=0.1)
    assert resident(tmp_path / "missing")[0] is None


def test_a_real_process(bundle: Bundle) -> None:
    found = measure_memory(bundle, preset("quick", labels=SHORT.labels), jpegs(2))
    assert found.rss_bytes is not None
    assert found.peak_rss_bytes is not None
    assert 20 << 20 < found.rss_bytes <= found.peak_rss_bytes < 1 << 30
    assert found.device_bytes is None, "nothing of it ran on a GPU"
    image = bundle.manifest.variants_of("image")[0]
    assert found.estimated_bytes == PROCESS_BYTES + estimate_memory(bundle, image), "labels came as a pack"


def test_towers_that_are_open_are_estimated(bundle: Bundle) -> None:
    found = memory.in_child(bundle.spec, preset("quick", labels=SHORT.labels), jpegs(2), None)
    both = [bundle.manifest.variants_of(kind)[0] for kind in ("image", "text")]
    assert found["estimated"] == PROCESS_BYTES + sum(estimate_memory(bundle, variant) for variant in both)


class Nvml:
    """One GPU, with as much in use as is said."""

    class NVMLError(Exception):
        pass

    def __init__(
        self, used: int, mine: int | None = None, *, listed: bool = True, fails: bool = False
    ) -> None:
        self.used, self.fails = used, fails
        self.processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=mine)] if listed else []
        self.processes.append(SimpleNamespace(pid=1, usedGpuMemory=77))

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA A10"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return "GPU-1"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if self.fails:
            raise self.NVMLError("not supported")
        return SimpleNamespace(used=self.used)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return self.processes


@pytest.mark.parametrize(
    ("library", "before", "wanted"),
    [
        (Nvml(900, 500), 100, 500),  # the driver knows this process
        (Nvml(900, listed=False), 100, 800),  # a container: its number is another one
        (Nvml(900, None), 100, 800),  # listed, without its memory
        (Nvml(900, listed=False), None, None),
        (Nvml(90, listed=False), 100, 0),  # others gave more back
        (Nvml(900, fails=True), 100, None),
    ],
)
def test_what_the_gpu_holds(
    monkeypatch: pytest.MonkeyPatch, library: Nvml, before: int | None, wanted: int | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(memory.nvml, "present", lambda: True)
    monkeypatch.setattr(memory.nvml, "load", lambda: library)
    assert on_device(before) == wanted


def test_without_nvml_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise RuntimeError("nvidia-ml-py is not installed")

    monkeypatch.setattr(memory.nvml, "present", lambda: False)
    assert used_on_gpu() is None
    monkeypatch.setattr(memory.nvml, "present", lambda: True)
    monkeypatch.setattr(memory.nvml, "load", missing)
    assert (used_on_gpu(), on_device(5)) == (None, None)
