"""Memory of a fresh process that opens the bundle and does the task, as the system and the GPU's driver count it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeclip.bench.cold import label_pack
from edgeclip.bench.device import nvml
from edgeclip.bench.fresh import CALLS, in_fresh_process, task_of
from edgeclip.bench.opening import open_model
from edgeclip.bench.report import Memory
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import takes_labels
from edgeclip.bundle import Bundle, open_bundle
from edgeclip.runtime.memory import PROCESS_BYTES, estimate_memory
from edgeclip.runtime.towers import Tower

STATUS = Path("/proc/self/status")


def measure_memory(bundle: Bundle, settings: Settings, inputs: Inputs) -> Memory:
    """Resident after ten calls, the most until then, and what the GPU holds.

    Labels come as a pack, as a device has them: their tower takes no memory. Measuring itself takes 5 MB of it.

    Returns:
        What this system does not tell is None. GPU memory is this process's by NVML; where NVML does not know its number, as in a
        container, the growth of all that is in use on that GPU.
    Raises:
        EdgeClipError: what the process met.
    """
    with tempfile.TemporaryDirectory() as folder:
        pack = label_pack(bundle, settings, Path(folder, "labels")) if takes_labels(settings.task) else None
        found = in_fresh_process("memory", bundle, settings, inputs, pack)
    return Memory(found["rss"], found["peak"], found["device"], found["estimated"])


def in_child(spec: str, settings: Settings, inputs: Inputs, pack: Path | None) -> dict[str, Any]:
    """In the fresh process: ten calls, then what they left in memory."""
    before = used_on_gpu()
    bundle = open_bundle(spec)
    with open_model(bundle, settings) as model:
        task = task_of(model, settings, inputs, pack)
        for k in range(CALLS):
            task.query([k % task.samples])
        rss, peak = resident()
        towers = [tower for tower in model.towers if tower.engine is not None]
        on_gpu = any(tower.engine is not None and tower.engine.overlaps for tower in towers)
        device = on_device(before) if on_gpu else None
    return {"rss": rss, "peak": peak, "device": device, "estimated": estimated(bundle, towers)}


def resident(status: Path = STATUS) -> tuple[int | None, int | None]:
    """Bytes of this process in memory, now and at most. Source: proc_pid_status(5), VmRSS and VmHWM; getrusage(2)."""
    try:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        now, most = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, most
    except (OSError, KeyError, ValueError, IndexError):
        return None, _most_by_resource()


def _most_by_resource() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def used_on_gpu() -> int | None:
    """Bytes in use on the GPU that CUDA calls number 0, by whomever; None where NVML does not tell."""
    if not nvml.present():
        return None
    try:
        library = nvml.load()
    except RuntimeError:  # the sampler of the device's state says why in the report
        return None
    try:
        return int(library.nvmlDeviceGetMemoryInfo(nvml.chosen(library)).used)
    except (RuntimeError, library.NVMLError):
        return None


def on_device(before: int | None) -> int | None:
    """Bytes that this process holds on the GPU.

    Args:
        before: what was in use there before it began.
    """
    now = used_on_gpu()
    if now is None:
        return None
    library = nvml.load()
    try:
        own = nvml.memory_of(library, [os.getpid()])
    except library.NVMLError:
        own = None
    if own is None and before is not None:
        return max(0, now - before)
    return own


def estimated(bundle: Bundle, towers: Iterable[Tower]) -> int:
    """What `inspect --memory` says of the towers, and a process without any."""
    known = {variant.id for variant in bundle.manifest.variants}
    opened = [tower.variant for tower in towers]
    return PROCESS_BYTES + sum(estimate_memory(bundle, v) for v in opened if v is not None and v.id in known)
