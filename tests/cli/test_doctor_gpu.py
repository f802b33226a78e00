"""`edgeclip doctor` about GPUs, boards and engines: machines that this one is not, made of files and programs."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclip.doctor import engines, examine, gpu
from edgeclip.doctor.finding import Finding, answer
from edgeclip.runtime import cuda
from edgeclip.runtime.cuda import Device
from edgeclip.runtime.engines import nvidia
from tests.cli.conftest import Edgeclip

A4000 = Device(0, "NVIDIA RTX A4000", (8, 6), 16 * 1024**3, "13.0")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without GPU, board and programs, whatever this one is."""
    monkeypatch.setattr(nvidia, "has_gpu", lambda: False)
    monkeypatch.setattr(nvidia, "driver_cuda", lambda: None)
    monkeypatch.setattr(cuda, "devices", list)
    monkeypatch.setattr(gpu, "RELEASE", tmp_path / "nv_tegra_release")
    monkeypatch.setattr(gpu, "POWER_MODES", tmp_path / "nvpmodel.conf")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "has_gpu", lambda: True)
    monkeypatch.setattr(nvidia, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(cuda, "devices", lambda: [A4000])


def installed(monkeypatch: pytest.MonkeyPatch, **packages: str) -> None:
    """These and no others; "_" stands for "-"."""

    def version(name: str) -> str:
        if (found := packages.get(name.replace("-", "_"))) is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)


def onnxruntime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *providers: str) -> None:
    module: Any = SimpleNamespace(
        __file__=str(tmp_path / "onnxruntime/__init__.py"), __version__="1.31.1", cuda_version="13.0",
        get_available_providers=lambda: [*providers, "CPUExecutionProvider"],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxruntime", module)


def program(folder: Path, name: str, text: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


def by_topic(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings}


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, onnxruntime="1.32.0", tensorrt_rtx_cu13="1.7.1.116", cuda_bindings="13.5.0")
    found = by_topic([*gpu.look(), *engines.look()])
    assert found["gpu"].detail == "no NVIDIA GPU found; the CPU engine is used"
    assert "driver" not in found
    assert "jetson" not in found
    assert found["engine tensorrt-rtx"].detail == (
        "tensorrt-rtx 1.7.1.116; it needs an NVIDIA GPU to run, it builds ahead of time for others"
    )
    assert found["cuda-bindings"] == Finding("cuda-bindings", True, "13.5.0")
    assert found["engine tensorrt"].command == "pip install tensorrt 'edgeclip[tensorrt]'"
    assert found["engine onnxruntime-tensorrt-rtx"].command.endswith(" onnxruntime-ep-nv-tensorrt-rtx")
    assert found["engines"].detail == "none was built"
    assert "is made with the first engine" in found["engine key"].detail


def test_a_machine_with_everything(monkeypatch: pytest.MonkeyPatch, card: None, tmp_path: Path) -> None:
    installed(
        monkeypatch, onnxruntime_gpu="1.31.1", tensorrt="10.16.1.11", tensorrt_rtx_cu13="1.7.1.116",
        onnxruntime_ep_nv_tensorrt_rtx_cu13="0.5.0", cuda_bindings="13.5.0",
    )  # fmt: skip
    onnxruntime(monkeypatch, tmp_path, "TensorrtExecutionProvider", "CUDAExecutionProvider")
    library = tmp_path / "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\0libnvinfer.so.10\0")
    monkeypatch.setattr("edgeclip.runtime.engines.tensorrt.present", lambda: True)
    monkeypatch.setattr("edgeclip.runtime.engines.tensorrt_rtx.present", lambda: True)
    found = by_topic([*gpu.look(), *engines.look()])
    assert [topic for topic, finding in found.items() if not finding.ok or finding.command] == []
    assert found["gpu"].detail == (
        "0: NVIDIA RTX A4000, 16.0 GiB, compute capability 8.6 (fp16, int8, bf16; TensorRT and TensorRT-RTX)"
    )
    assert found["driver"].detail == "serves CUDA up to 13.0"
    assert found["engine onnxruntime-cuda"].detail == "built in, for CUDA 13.0, which the driver serves"
    assert found["engine onnxruntime-tensorrt"].detail == "built in; TensorRT 10.16.1.11"
    library.write_bytes(b"\0libnvinfer.so.11\0")
    other = by_topic(engines.look())["engine onnxruntime-tensorrt"]
    assert (other.ok, other.detail) == (False, "needs TensorRT 11, 10.16.1.11 is installed")
    assert other.command == "pip install 'tensorrt==11.*'"


def test_what_is_missing_beside_a_gpu(monkeypatch: pytest.MonkeyPatch, card: None, tmp_path: Path) -> None:
    installed(monkeypatch, onnxruntime_gpu="1.31.1", tensorrt="10.16.1.11")
    onnxruntime(monkeypatch, tmp_path, "CUDAExecutionProvider")
    monkeypatch.setattr(nvidia, "driver_cuda", lambda: (12, 4))
    found = by_topic([*gpu.look(), *engines.look()])
    old = found["engine onnxruntime-cuda"]
    assert not old.ok
    assert "built with CUDA 13.0, the driver serves up to 12.4" in old.detail
    assert old.command == "pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'"
    assert found["engine tensorrt"].detail == "tensorrt 10.16.1.11; cuda-bindings is missing, see below"
    assert found["cuda-bindings"].command == "pip install 'cuda-bindings==12.*'"
    monkeypatch.setattr(nvidia, "driver_cuda", lambda: None)
    found = by_topic([*gpu.look(), *engines.look()])
    assert not found["driver"].ok
    assert "`docker run --gpus all`" in found["driver"].detail
    assert found["driver"].command == "sudo ubuntu-drivers install"
    assert (found["engine onnxruntime-cuda"].ok, found["engine onnxruntime-cuda"].command) == (False, "")


@pytest.mark.parametrize(
    ("capability", "said"),
    [
        ((6, 1), "no tensor cores; onnxruntime-cuda"),
        ((7, 0), "fp16; onnxruntime-cuda"),
        ((7, 5), "fp16, int8; TensorRT and TensorRT-RTX"),
        ((8, 7), "fp16, int8, bf16; TensorRT"),  # Orin
        ((8, 9), "fp16, int8, bf16, fp8; TensorRT and TensorRT-RTX"),
        ((9, 0), "fp16, int8, bf16, fp8; TensorRT"),
        ((12, 0), "fp16, int8, bf16, fp8; TensorRT and TensorRT-RTX"),
    ],
)
def test_abilities(capability: tuple[int, int], said: str) -> None:
    assert gpu.abilities(capability) == said


@pytest.mark.parametrize(
    ("release", "said"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64", "JetPack 6 (Jetson Linux 36.4.3)"),
        ("# R38 (release), REVISION: 2.0, GCID: 1, BOARD: generic, EABI: aarch64", "JetPack 7 (Jetson Linux 38.2.0)"),
        ("# R39 (release), REVISION: 1.0, GCID: 1", "JetPack 7 (Jetson Linux 39.1.0)"),
        ("# R99 (release), REVISION: 0.1", "JetPack not known (Jetson Linux 99.0.1)"),
        ("who knows", "JetPack not known (who knows)"),
    ],
)  # fmt: skip
def test_boards(release: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "nv_tegra_release").write_text(release + "\n")
    found = by_topic(gpu.look())["jetson"]
    assert found.detail.startswith(f"{said}, power mode not known")
    assert found.command == ""
    tensorrt = by_topic(engines.look())["engine tensorrt"]  # JetPack's own, not pip's
    assert tensorrt.command == "sudo apt-get install python3-libnvinfer && pip install 'edgeclip[tensorrt]'"


def test_power_modes(tmp_path: Path) -> None:
    (tmp_path / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1\n")
    program(tmp_path, "nvpmodel", "echo 'NV Power Mode: 15W'; echo 0")
    assert (
        by_topic(gpu.look())["jetson"].command == ""
    )  # the board's table is not there: no number is guessed
    (tmp_path / "nvpmodel.conf").write_text(
        "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    )
    found = by_topic(gpu.look())["jetson"]
    assert "power mode 15W" in found.detail
    assert "the fastest mode is MAXN_SUPER" in found.detail
    assert found.command == "sudo nvpmodel -m 2 && sudo jetson_clocks"
    program(tmp_path, "nvpmodel", "echo 'NVPM WARN: x'; echo 'NV Power Mode: MAXN_SUPER'; echo 2")
    assert by_topic(gpu.look())["jetson"].command == ""


def test_without_the_package_the_driver_s_own_program_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA L4, 580.1, 23034 MiB'; echo 'NVIDIA L4, 580.1, 23034 MiB'")
    assert [finding.detail for finding in gpu.look()] == ["NVIDIA L4, 580.1, 23034 MiB"] * 2
    program(tmp_path, "nvidia-smi", "echo broken >&2; exit 9")
    monkeypatch.setattr(nvidia, "has_gpu", lambda: True)
    assert "nothing that tells of it" in gpu.look()[0].detail
    assert answer(["no-such-program"]) is None


def test_the_key_and_the_engines(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    key = cache / "engine.key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    assert by_topic(engines.look())["engine key"] == Finding("engine key", True, str(key))
    key.chmod(0o644)
    found = by_topic(engines.look())["engine key"]
    assert not found.ok
    assert "chmod" in found.detail
    key.chmod(0o600)
    store = cache / "abc/engines"
    store.mkdir(parents=True, mode=0o700)
    (store / f"image-fp32-{'0' * 16}.json").write_text("{}")
    found = by_topic(engines.look())["engines"]
    assert (found.ok, found.detail) == (False, "0 built, for 0 bundle(s), 0 MB; 1 cannot be used")


def test_it_loads_no_library_and_all_topics_are_printed(
    edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, *more: Any, **others: Any) -> Any:
        raise AssertionError(f"{name} was loaded")

    table = edgeclip("doctor").out
    assert all(finding.topic in table for finding in examine())
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    examine()
