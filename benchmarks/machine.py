"""What a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = ("edgeclip", "onnxruntime", "pillow", "numpy", "torch", "torchvision", "transformers", "openvino")


def describe() -> dict[str, str]:
    """CPU, cores, load, Python and the versions that matter."""
    cpu = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))
        )
    except (OSError, StopIteration):
        pass
    found = {
        "cpu": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "load_1min": f"{os.getloadavg()[0]:.2f}",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
