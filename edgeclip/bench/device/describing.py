"""What the figures were measured on."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from edgeclip.bench.device import cpu, jetson, nvml, surroundings
from edgeclip.bench.device.source import ROOT, whole
from edgeclip.bench.report import Device, Gpu
from edgeclip.runtime import cuda
from edgeclip.runtime.cpu import cpu_flags
from edgeclip.runtime.engines import nvidia
from edgeclip.runtime.threads import usable_cores

# distributions that decide a figure
PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "cuda-bindings",
    "numpy", "pillow", "opencv-python-headless", "tokenizers",
)  # fmt: skip


def describe_device(root: Path = ROOT) -> Device:
    """This machine. Takes some 10 ms; where only CUDA can tell the GPU, the first call a second."""
    machine, processor = surroundings.describe(root), cpu.describe(root)
    board = jetson.describe(root) if jetson.present(root) else None
    name = processor.name or platform.processor() or platform.machine()
    return Device(
        name=board.name if board else machine.product or name,
        cpu=name,
        cores=usable_cores(),
        logical_cores=len(cpu.usable()),
        cpu_flags=cpu_flags(root / "proc/cpuinfo"),
        memory_bytes=machine.memory_bytes,
        gpus=_integrated(board, machine.memory_bytes) if board else _gpus(root),
        system=f"{_distribution(root)}, {platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=_packages(board),
        governor=processor.governor,
        power_mode=_mode(board, processor) if board else None,
        virtual=machine.virtual,
    )


def _mode(board: jetson.Board, processor: cpu.Cpu) -> str | None:
    """E.g. "MAXN_SUPER, jetson_clocks on"."""
    fixed = [value for value in (board.fixed, processor.fixed) if value is not None]
    clocks = f"jetson_clocks {'on' if all(fixed) else 'off'}" if fixed else ""
    return ", ".join(word for word in (board.power_mode, clocks) if word) or None


def _integrated(board: jetson.Board, memory_bytes: int) -> tuple[Gpu, ...]:
    """A Jetson's own GPU, which shares the memory."""
    driver = f"Jetson Linux {board.release}" if board.release else "not known"
    return (Gpu(f"{board.name}, integrated GPU", driver, memory_bytes, None, board.gpu_max_mhz),)


def _gpus(root: Path) -> tuple[Gpu, ...]:
    if not nvml.present(root):
        return ()
    try:
        library = nvml.load()
    except RuntimeError:  # the sampler's `not_measured` says which; CUDA knows name and memory
        version = (whole(root / "proc/driver/nvidia/version") or "").split()
        driver = next((word for word in version if word[:1].isdigit() and "." in word), "not known")
        return tuple(Gpu(device.name, driver, device.memory) for device in cuda.devices())
    try:
        return nvml.describe(library)
    finally:
        library.nvmlShutdown()


def _distribution(root: Path) -> str:
    lines = (line.partition("=") for line in (whole(root / "etc/os-release") or "").splitlines())
    return {key: value.strip('"') for key, _, value in lines}.get("PRETTY_NAME", platform.system())


def _packages(board: jetson.Board | None) -> dict[str, str]:
    """Name -> version, without what is not installed."""
    from edgeclip.version import __version__

    found = {"edgeclip": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if board and board.release:
        found["jetson-linux"] = board.release
    if nvidia.has_gpu() and (served := nvidia.driver_cuda()):
        found["cuda driver"] = f"{served[0]}.{served[1]}"
    return found
