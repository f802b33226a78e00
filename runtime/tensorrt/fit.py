"""May this engine run here? One check for each reason why it may not, in the order in which they are asked."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass

from edgeclip.bundle import Bundle
from edgeclip.runtime.cuda import Device
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.record import Record

# Engines that were built to run under later releases also pass from one major release to these.
# Source: docs.nvidia.com/deeplearning/tensorrt/11.4.1, support matrix, "Engine Portability".
NEXT_MAJOR = ((8, 10), (10, 11))
AMPERE = (8, 0)
# An exact engine is tuned for its card's clocks and caches. Every Jetson Orin is called "Orin"; memory tells the boards apart, of
# which drivers and error correction take up to a sixteenth.
ALIKE = 7 / 8


@dataclass(frozen=True)
class Here:
    """What an engine would run with. None: not asked."""

    bundle: Bundle | None = None
    library: Library | None = None
    device: Device | None = None


def this_platform() -> str:
    """E.g. "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine().lower()}"


def misfit(record: Record, here: Here) -> str:
    """Why an engine may not run here: what it is, and what is here. "": it may."""
    return next(filter(None, (check(record, here) for check in CHECKS)), "")


def _bundle(record: Record, here: Here) -> str:
    if here.bundle is None or record.bundle == here.bundle.digest:
        return ""
    return f"built for bundle {record.bundle[:12]}, this one is {here.bundle.digest[:12]}"


def _graph(record: Record, here: Here) -> str:
    """Of a graph of the bundle; one that was made beside the engine is hashed when it is read (`Store.graph`)."""
    if here.bundle is None:
        return ""
    manifest = here.bundle.manifest
    known = {variant.id: variant for variant in manifest.variants}
    if (source := record.made_from or record.variant.id) not in known:
        return f"built from variant {source}, which the bundle does not have"
    if record.made_from:
        return ""
    files = {name: manifest.files[name].sha256 for name in known[source].files}
    return "" if dict(record.graphs) == files else f"built from another graph of {source}"


def _library(record: Record, here: Here) -> str:
    if here.library is None or record.library == here.library.name:
        return ""
    return f"built by {record.library}, opened by {here.library.name}"


def _version(record: Record, here: Here) -> str:
    if here.library is None or record.version == here.library.version:
        return ""
    built, now = _numbers(record.version), _numbers(here.library.version)
    if record.library == "tensorrt" and record.options.version_compatible:
        if built <= now and (built[0] == now[0] or (built[0], now[0]) in NEXT_MAJOR):
            return ""
        return (
            f"built by {record.library} {record.version} for later releases, this is {here.library.version}"
        )
    return f"built by {record.library} {record.version}, this is {here.library.version}"


def _platform(record: Record, here: Here) -> str:
    found = this_platform()
    return "" if record.platform == found else f"built on {record.platform}, this is {found}"


def _device(record: Record, here: Here) -> str:
    if (device := here.device) is None:
        return ""
    this = f"this is {device.name} ({device.arch})"
    if archs := record.options.archs:
        return "" if device.arch in archs else f"built for {', '.join(archs)}, {this}"
    if (own := record.device) is None:
        return "built for no device"
    if record.options.hardware_compatible == "ampere+":
        return "" if min(own.capability, device.capability) >= AMPERE else f"built for sm80 and newer, {this}"
    exact = not record.options.hardware_compatible and record.library == "tensorrt"
    if own.capability != device.capability or (exact and own.name != device.name):
        return f"built for {own.name} ({own.arch}), {this}"
    if exact and min(own.memory, device.memory) < ALIKE * max(own.memory, device.memory):
        return f"built for {own.name} of {own.memory >> 20} MiB, this one has {device.memory >> 20}"
    return ""


def _driver(record: Record, here: Here) -> str:
    if here.device is None or record.device is None:
        return ""
    built, now = record.device.driver, here.device.driver
    if _numbers(now) >= _numbers(built):
        return ""
    return f"built under a driver for CUDA {built}, this one serves {now}"


CHECKS: tuple[Callable[[Record, Here], str], ...] = (
    _bundle,
    _graph,
    _library,
    _version,
    _platform,
    _device,
    _driver,
)


def _numbers(version: str) -> tuple[int, ...]:
    """10.3.0.30 -> (10, 3, 0, 30); what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
