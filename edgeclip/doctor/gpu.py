"""NVIDIA GPUs, their driver, and a Jetson's release and power mode."""

from __future__ import annotations

import re
from pathlib import Path

from edgeclip.doctor.finding import Finding, answer
from edgeclip.runtime import cuda
from edgeclip.runtime.engines import nvidia

RELEASE = Path("/etc/nv_tegra_release")
POWER_MODES = Path("/etc/nvpmodel.conf")
# Major release of Jetson Linux -> JetPack. Source: docs.nvidia.com/jetson/archives, "Jetson Linux" and "JetPack" release notes.
JETPACKS = {35: "5", 36: "6", 38: "7", 39: "7"}

BF16, FP8 = (8, 0), (8, 9)  # compute capabilities from which a data type has tensor cores
# TensorRT-RTX 1.7 builds for these; not for Orin (8.7), H100 (9.0) or B200 (10.0).
RTX, RTX_FROM = {(7, 5), (8, 0), (8, 6), (8, 9)}, (12, 0)


def look() -> list[Finding]:
    """A line for each GPU, or one that says there is none; then the driver and, on a Jetson, the board."""
    found = [Finding("gpu", True, line) for line in _gpus()]
    if nvidia.has_gpu():
        found.append(_driver())
    if (board := _jetson()) is not None:
        found.append(board)
    return found


def is_jetson() -> bool:
    """Whether this is a Jetson: what is installed there comes from JetPack, not from pip."""
    return RELEASE.exists()


def abilities(capability: tuple[int, int]) -> str:
    """What a GPU computes in on tensor cores, and which TensorRT serves it."""
    types = [
        "fp16",
        "int8",
        *(["bf16"] if capability >= BF16 else []),
        *(["fp8"] if capability >= FP8 else []),
    ]
    if capability < (7, 0):
        return "no tensor cores; onnxruntime-cuda"
    if capability < (7, 5):
        return "fp16; onnxruntime-cuda"
    served = "TensorRT" + (" and TensorRT-RTX" if capability in RTX or capability >= RTX_FROM else "")
    return f"{', '.join(types)}; {served}"


def _gpus() -> list[str]:
    if devices := cuda.devices():
        return [
            f"{d.index}: {d.name}, {d.memory / 1024**3:.1f} GiB, compute capability {d.capability[0]}.{d.capability[1]} "
            f"({abilities(d.capability)})"
            for d in devices
        ]
    said = answer(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"])
    if said and said.strip():
        return [line.strip() for line in said.splitlines()]
    if nvidia.has_gpu():
        return ["an NVIDIA device is there, but nothing that tells of it (cuda-bindings, nvidia-smi)"]
    return ["no NVIDIA GPU found; the CPU engine is used"]


def _driver() -> Finding:
    served = nvidia.driver_cuda()
    if served is None:
        reason = (
            "the device is there, but libcuda.so.1 does not load or start; a container gets it by "
            f"`docker run {'--runtime nvidia' if is_jetson() else '--gpus all'}`"
        )
        return Finding("driver", False, reason, "" if is_jetson() else "sudo ubuntu-drivers install")
    return Finding("driver", True, f"serves CUDA up to {served[0]}.{served[1]}")


def _jetson() -> Finding | None:
    try:
        first = RELEASE.read_text().splitlines()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    # "# R36 (release), REVISION: 4.3, GCID: ..."
    known = re.search(r"R(\d+)\D+?REVISION: ([\d.]+)", first)
    release = f"Jetson Linux {known[1]}.{known[2]}" if known else first.lstrip("# ")
    pack = JETPACKS.get(int(known[1])) if known else None
    mode = re.search(r"NV Power Mode: *(\S+)", answer(["nvpmodel", "-q"]) or "")
    detail = (
        f"JetPack {pack or 'not known'} ({release}), power mode {mode[1] if mode else 'not known'}; CPU and GPU share "
        "the memory above"
    )
    if mode and not mode[1].startswith("MAXN") and (best := _fastest()) is not None:
        return Finding(
            "jetson", True, f"{detail}; the fastest mode is {best[1]}", f"sudo nvpmodel -m {best[0]} && sudo jetson_clocks"
        )  # fmt: skip
    return Finding("jetson", True, detail)


def _fastest() -> tuple[str, str] | None:
    """(number, name) of the power mode without a cap, as the board's own table has it; its number differs between boards."""
    try:
        modes = re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(MAXN\w*)", POWER_MODES.read_text())
    except (OSError, UnicodeDecodeError):
        return None
    return max(modes, key=lambda mode: len(mode[1]), default=None)  # MAXN_SUPER before MAXN
