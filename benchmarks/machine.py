"""What a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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


def keep_figures(file: Path, name: str, found: Any, order: Iterable[str]) -> dict[str, Any]:
    """Replace one model's figures in a file of several. Returns all of them, in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text()) if file.exists() else {}
    known[name] = found
    known = {each: known[each] for each in order if each in known}
    file.write_text(json.dumps(known, indent=1) + "\n")
    return known
