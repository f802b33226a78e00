"""What shares the machine: other guests and programs, a container's quota, swapping; and what the machine itself is.

Source: docs.kernel.org/filesystems/proc.html (/proc/stat in ticks: user nice system idle iowait irq softirq steal; /proc/PID/stat);
admin-guide/cgroup-v2.html and scheduler/sched-bwc.html (cpu.stat); admin-guide/sysctl and vmstat (pswpin, pswpout in pages).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeclip.bench.device.source import ROOT, Reading, text, whole

QUOTA = "the CPU quota of its control group stopped the program {} times"
_PLACEHOLDERS = re.compile(
    r"|none|default string|to be filled.*|system product name|not (specified|applicable)|standard pc.*", re.I
)
# what DMI or the kernel's list of clocks calls a hypervisor -> how it is called here; clouds before what they run on
_GUESTS = (
    ("amazon ec2", "kvm (EC2)"), ("google", "kvm (Google)"), ("firecracker", "kvm (Firecracker)"), ("vmware", "vmware"),
    ("virtualbox", "virtualbox"), ("hyperv", "hyper-v"), ("virtual machine", "hyper-v"), ("xen", "xen"), ("qemu", "kvm"),
    ("kvm", "kvm"),
)  # fmt: skip
_CLOCKS = "sys/devices/system/clocksource/clocksource0/available_clocksource"
_CONTAINERS = (
    ("kubepods", "kubernetes"),
    ("docker", "docker"),
    ("libpod", "podman"),
    ("lxc", "lxc"),
    ("containerd", "containerd"),
)

FEWEST_TICKS = 10  # of all CPUs, that their load is judged by: 0.1 s of one


@dataclass(frozen=True)
class Machine:
    """What does not change during a run."""

    product: str  # of the maker, "" where it does not say
    virtual: str | None  # "" on bare metal, None where the system does not tell
    memory_bytes: int
    load: float | None  # mean number of runnable tasks, one minute


@dataclass(frozen=True)
class Spent:
    """CPU time so far, in ticks. Differences of two are what a run took."""

    total: int  # of all CPUs, with idling
    busy: int  # of this machine's programs
    stolen: int  # by other guests of the host
    ours: int  # this process, its children and theirs


def present(root: Path = ROOT) -> bool:
    """Whether the system tells."""
    return (root / "proc/stat").exists()


def describe(root: Path = ROOT) -> Machine:
    """The machine."""
    maker, product = (text(root / "sys/class/dmi/id" / name) or "" for name in ("sys_vendor", "product_name"))
    maker, product = ("" if _PLACEHOLDERS.fullmatch(word) else word for word in (maker, product))
    load = re.match(r"(\d+\.\d+) ", whole(root / "proc/loadavg") or "")
    return Machine(
        product if product.startswith(maker) else f"{maker} {product}".strip() if product else "",
        virtual(root),
        _memory(root).get("MemTotal", 0),
        float(load[1]) if load else None,
    )


def virtual(root: Path = ROOT) -> str | None:
    """What this runs in, from the outside in, e.g. "kvm, docker"."""
    if (cpuinfo := whole(root / "proc/cpuinfo")) is None:
        return None
    guest, container = _guest(root, cpuinfo), _container(root)
    return ", ".join(word for word in (guest, container) if word)


def _guest(root: Path, cpuinfo: str) -> str:
    if "microsoft" in (text(root / "proc/sys/kernel/osrelease") or "").lower():
        return "wsl"
    places = ("sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/product_name", _CLOCKS)
    said = " ".join(text(root / place) or "" for place in places).lower()
    flagged = re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE) is not None
    named = next((name for word, name in _GUESTS if word in said), "")
    kind = (
        text(root / "sys/hypervisor/type")
        or text(root / "sys/firmware/devicetree/base/hypervisor/compatible")
        or ""
    )
    # a bare-metal instance has the cloud's name too, but on x86 no flag; Arm has no flag, there QEMU's own name must do
    if flagged or kind or (named and "flags" not in cpuinfo and "metal" not in said):
        return named or kind or "virtual machine"
    return ""


def _container(root: Path) -> str:
    groups = (whole(root / "proc/1/cgroup") or "") + (whole(root / "proc/self/cgroup") or "")
    if found := next((name for word, name in _CONTAINERS if word in groups), ""):
        return found
    if (root / ".dockerenv").exists():
        return "docker"
    return "podman" if (root / "run/.containerenv").exists() else ""


def _memory(root: Path) -> dict[str, int]:
    """Bytes by name, of /proc/meminfo."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", whole(root / "proc/meminfo") or "", re.MULTILINE)
    return {name: int(size) * 1024 for name, size in found}


def _ticks(root: Path) -> list[int] | None:
    """user nice system idle iowait irq softirq steal, of all CPUs."""
    found = re.match(r"cpu +((?:\d+ ){7}\d+)", text(root / "proc/stat") or "")
    return [int(tick) for tick in found[1].split()] if found else None


def spent(root: Path = ROOT, pid: int | None = None) -> Spent | None:
    """CPU time of the machine and of a process (default: this one) with all that it started; None where the system does not tell.

    Looks at every process, which takes some ms: for the begin and the end of a run.
    """
    if (ticks := _ticks(root)) is None:
        return None
    parents, times = dict[int, int](), dict[int, int]()
    for folder in (root / "proc").glob("[0-9]*"):
        # the name, in brackets, may hold anything
        fields = (text(folder / "stat") or "").rpartition(")")[2].split()
        if len(fields) > 14:
            parents[int(folder.name)] = int(fields[1])
            times[int(folder.name)] = sum(
                int(tick) for tick in fields[11:15]
            )  # with children that were waited for
    pid = os.getpid() if pid is None else pid
    ours = sum(time for number, time in times.items() if _descends(number, pid, parents))
    return Spent(sum(ticks), sum(ticks) - ticks[3] - ticks[4] - ticks[7], ticks[7], ours)


def _descends(process: int, ancestor: int, parents: dict[int, int]) -> bool:
    while process in parents and process != ancestor:
        process = parents[process]
    return process == ancestor


class Surroundings:
    """Load of the CPUs, memory, swapping and the container's quota."""

    part: Literal["board", "cpu", "gpu", ""] = ""
    covers = ""
    tells = False

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._before = _ticks(root)
        self._quotas = _quota_files(root)
        self.not_measured: dict[str, str] = {}
        if self._before is None:
            self.not_measured["state.cpu_load"] = f"{root / 'proc/stat'} does not tell"

    def sample(self) -> Reading:
        """Ask."""
        memory = _memory(self._root)
        gauges = (
            {"memory used": (memory["MemTotal"] - memory["MemAvailable"]) / 1e6}
            if "MemAvailable" in memory
            else {}
        )
        now, before = _ticks(self._root), self._before
        if now is not None and before is not None and 0 <= sum(now) - sum(before) < FEWEST_TICKS:
            now = before  # too short to say
        elif now is not None and before is not None:
            total, idle = sum(now) - sum(before), now[3] + now[4] - before[3] - before[4]
            gauges["cpu load"] = 100 * (total - idle) / total
        self._before = now
        return Reading(gauges, {**self._swapped(), **self._stopped()})

    def _swapped(self) -> dict[str, int]:
        pages = re.findall(r"^pswp(?:in|out) (\d+)$", whole(self._root / "proc/vmstat") or "", re.MULTILINE)
        return {"the machine swapped {} pages of memory": sum(map(int, pages))} if len(pages) == 2 else {}

    def _stopped(self) -> dict[str, int]:
        found = [re.search(r"^nr_throttled (\d+)$", text(path) or "", re.MULTILINE) for path in self._quotas]
        times = [int(match[1]) for match in found if match]
        return {QUOTA: sum(times)} if times and len(times) == len(self._quotas) else {}

    def close(self) -> None:
        """Nothing is held."""


def _quota_files(root: Path) -> list[Path]:
    """cpu.stat of this process's control group and of those around it (version 2, or 1); the root's has no quota."""
    found = []
    for line in (whole(root / "proc/self/cgroup") or "").splitlines():
        _, kinds, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        if kinds and "cpu" not in kinds.split(","):
            continue
        mount = mount / "cpu" if kinds else mount
        folder = Path(path.lstrip("/"))
        # inside a container the mount's own root is often the container's group
        found += [mount / group / "cpu.stat" for group in dict.fromkeys((folder, *folder.parents))]
    return [path for path in found if "nr_throttled" in (text(path) or "")]


def open_source(root: Path = ROOT) -> Surroundings:
    """Ready to be sampled."""
    return Surroundings(root)
