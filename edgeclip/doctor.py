"""What this machine can run, and the exact command for what is missing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeclip.errors import EdgeClipError
from edgeclip.files import cache_folder
from edgeclip.runtime.cpu import cpu_flags, cpu_name


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    topic: str
    ok: bool
    detail: str
    command: str = ""  # what to type to get it; "" when nothing is missing


def examine() -> list[Finding]:
    """Look at the machine and the installation. Never raises for something that is merely absent."""
    return [_python(), _cpu(), _memory(), _gpu(), *_engines(), _export(), _cache(), *_embedded()]


def to_records(findings: list[Finding]) -> list[dict[str, Any]]:
    """JSON-ready."""
    return [asdict(finding) for finding in findings]


def _python() -> Finding:
    good = sys.version_info >= (3, 10)
    return Finding(
        "python",
        good,
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if good else "install Python 3.10 or newer",
    )


def _cpu() -> Finding:
    name = cpu_name() or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    sets = " ".join(cpu_flags()) or "instruction sets not known"
    return Finding("cpu", True, f"{name}, {cores} cores usable, {sets}")


def _memory() -> Finding:
    try:
        entries = dict(
            line.split(":") for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
        )
        total, free = (int(entries[key].split()[0]) / 1024**2 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return Finding("memory", True, "not known")
    return Finding("memory", True, f"{free:.1f} of {total:.1f} GiB available")


def _gpu() -> Finding:
    jetson = Path("/etc/nv_tegra_release")
    if jetson.exists():
        return Finding("gpu", True, f"Jetson: {jetson.read_text().splitlines()[0].lstrip('# ')}")
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        lines = subprocess.run(
            query, capture_output=True, text=True, timeout=10, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return Finding("gpu", True, "no NVIDIA GPU found; the CPU engine is used")
    return Finding("gpu", True, "; ".join(line.strip() for line in lines))


def _engines() -> list[Finding]:
    cpu, cuda = "engine onnxruntime-cpu", "engine onnxruntime-cuda"
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if not installed:
        return [Finding(cpu, False, "onnxruntime is not installed", "pip install 'edgeclip[cpu]'")]
    keep_one = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'edgeclip[gpu]'"
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except Exception as error:  # a broken wheel raises whatever it likes
        fix = keep_one if len(installed) == 2 else f"pip install --force-reinstall {installed[0]}"
        return [Finding(cpu, False, f"does not import: {error}", fix)]
    found = [Finding(cpu, True, f"onnxruntime {_version(installed[0])}")]
    if len(installed) == 2:
        reason = "onnxruntime and onnxruntime-gpu share one folder; keep one of them"
        found.append(Finding(cuda, False, reason, keep_one))
    elif "CUDAExecutionProvider" in providers:
        reason = "built in; whether it starts shows when a bundle is loaded with --engine onnxruntime-cuda"
        found.append(Finding(cuda, True, reason))
    else:
        fix = "pip uninstall -y onnxruntime && pip install 'edgeclip[gpu]'"
        reason = "this onnxruntime has no CUDA provider (needs an NVIDIA GPU)"
        found.append(Finding(cuda, False, reason, fix))
    return found


def _export() -> Finding:
    missing = [name for name in ("torch", "onnx", "onnxscript") if _version(name) is None]
    if missing:
        return Finding(
            "export and train",
            False,
            f"not installed: {', '.join(missing)} (only the workstation needs them)",
            "pip install 'edgeclip[export]'",
        )
    return Finding("export and train", True, f"torch {_version('torch')}, onnx {_version('onnx')}")


def _cache() -> Finding:
    folder = cache_folder()
    place = folder
    while not place.exists():
        place = place.parent
    if os.access(place, os.W_OK):
        return Finding("cache", True, str(folder))
    return Finding(
        "cache",
        True,
        f"{folder} cannot be written; folders open all the same, .zip bundles need it",
        "export EDGECLIP_CACHE=/some/folder",
    )


def _embedded() -> list[Finding]:
    from edgeclip.bundle.store import embedded_names, open_bundle

    found = []
    for name in embedded_names():
        try:
            bundle = open_bundle(name)
        except EdgeClipError as error:
            found.append(
                Finding(f"bundle {name}", False, str(error), "pip install --force-reinstall edgeclip")
            )
        else:
            size = sum(entry.size for entry in bundle.manifest.files.values())
            found.append(Finding(f"bundle {name}", True, f"embedded, {size / 1e6:.1f} MB"))
    return found or [
        Finding("bundle nano", False, "no embedded bundle", "pip install --force-reinstall edgeclip")
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
