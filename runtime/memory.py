"""How much memory a tower will take, before it is loaded.

Measured on onnxruntime 1.32, x86-64, CPU engine (docs/runtime.md): the process without a model, then the weights once (packed
copies replace the originals), then buffers. fp16 weights are widened to fp32 beside the originals.
"""

from __future__ import annotations

from pathlib import Path

from edgeclip.bundle import Bundle, Variant

PROCESS_BYTES = 40 << 20  # Python, numpy, Pillow, onnxruntime
BUFFER_BYTES = 24 << 20  # what onnxruntime needs beside weights, at batch 1
_WEIGHTS_FACTOR = {"fp32": 1.0, "fp16": 3.0, "bf16": 3.0, "int8": 1.1, "fp8": 1.1, "int4": 1.1}


def estimate_memory(bundle: Bundle, variant: Variant) -> int:
    """Bytes of resident memory that loading one variant adds to the process, at batch 1 on the CPU engine.

    Within 10 % for the image tower of a ViT-B/32. Too high for text towers, by the part of the token table that is never read:
    external data is mapped, not copied, and its unused pages are never loaded.
    """
    weights = sum(bundle.manifest.files[name].size for name in variant.files)
    return int(weights * _WEIGHTS_FACTOR[variant.axes.precision]) + BUFFER_BYTES


def available_memory(root: Path = Path("/"), *, swap: bool = False) -> int | None:
    """Bytes that this machine, and the container around this process, can still give; None where the system does not say.

    Args:
        root: of the file system that tells.
        swap: count free swap too.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        sizes = {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}
        free = sizes["MemAvailable"] + (sizes.get("SwapFree", 0) if swap else 0)
    except (OSError, ValueError, IndexError, KeyError):
        return None
    return min([free, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> list[int]:
    """Bytes left below each memory limit of the control groups that hold this process (version 2, or 1); [] without any."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in (
        lines
    ):  # "0::/a/b" or "4:memory:/a/b"; inside a container the folder itself is often the mount's root
        _, kinds, path = line.split(":", 2)
        names = ("memory.max", "memory.current", "inactive_file")
        mount = root / "sys/fs/cgroup"
        if "memory" in kinds.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mount = mount / "memory"
        elif kinds:
            continue
        folder = Path(path.lstrip("/"))
        for group in (folder, *folder.parents):
            if (size := _left_in_group(mount / group, *names)) is not None:
                left.append(size)
    return left


def _left_in_group(folder: Path, limit: str, used: str, idle: str) -> int | None:
    try:
        most, now = int((folder / limit).read_text()), int((folder / used).read_text())
        stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return None
    return max(0, most - now + int(stats.get(idle, 0)))  # files that were read long ago are given back
