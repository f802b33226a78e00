"""The machine itself and what is installed on it, without its GPU and engines."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from edgeclip.doctor.finding import Finding, version_of
from edgeclip.errors import EdgeClipError
from edgeclip.files import cache_folder
from edgeclip.runtime.cpu import cpu_flags, cpu_name


def python() -> Finding:
    """Its version."""
    good = sys.version_info >= (3, 10)
    return Finding(
        "python",
        good,
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if good else "install Python 3.10 or newer",
    )


def cpu() -> Finding:
    """Name, cores and instruction sets."""
    name = cpu_name() or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    sets = " ".join(cpu_flags()) or "instruction sets not known"
    return Finding("cpu", True, f"{name}, {cores} cores usable, {sets}")


def memory() -> Finding:
    """Free and whole."""
    try:
        entries = dict(
            line.split(":") for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
        )
        total, free = (int(entries[key].split()[0]) / 1024**2 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return Finding("memory", True, "not known")
    return Finding("memory", True, f"{free:.1f} of {total:.1f} GiB available")


def clocks() -> Finding:
    """What decides whether a latency measured now would be measured again tomorrow: governor, throttling, what it runs in."""
    from edgeclip.bench.device import cpu as processor
    from edgeclip.bench.device import surroundings, thermal

    governor, sensors = processor.describe().governor, thermal.open_source()
    said, within = sensors.sample(), surroundings.virtual()
    words = [f"governor {governor}" if governor else "no governor is shown"]
    words += [f"{name.removesuffix(' temperature')} {value:.0f} °C" for name, value in said.gauges.items()]
    words += [f"slowed by {name}" for name in said.held] + ([f"in {within}"] if within else [])
    follows = governor is not None and governor != "performance"
    command = "sudo cpupower frequency-set -g performance" if follows else ""
    return Finding("clocks", not said.held, ", ".join(words), command)


def export() -> Finding:
    """What the workstation needs."""
    missing = [name for name in ("torch", "onnx", "onnxscript") if version_of(name) is None]
    if missing:
        return Finding(
            "export and train",
            False,
            f"not installed: {', '.join(missing)} (only the workstation needs them)",
            "pip install 'edgeclip[export]'",
        )
    return Finding("export and train", True, f"torch {version_of('torch')}, onnx {version_of('onnx')}")


def cache() -> Finding:
    """Where it is, and whether it can be written."""
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


def embedded() -> list[Finding]:
    """The bundles inside the package."""
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
