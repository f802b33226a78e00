"""How many threads this process should use: physical cores that it may run on, within its cgroup's quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores in this process's affinity mask, or fewer where a cgroup grants less time. At least 1."""
    allowed = (
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    cores = len({_core(cpu) for cpu in allowed})
    quota = _quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _core(cpu: int) -> str:
    """What tells the physical core of a logical CPU; hyper-threads share it."""
    try:
        return (_CPU / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> float | None:
    """CPUs' worth of time that the cgroup grants, v2 then v1; None without a limit."""
    try:
        granted, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            granted = (_CGROUP / "cpu/cpu.cfs_quota_us").read_text()
            period = (_CGROUP / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        return float(granted) / float(period) if float(granted) > 0 else None
    except ValueError:  # "max"
        return None
