"""What shares the machine, on planted files; and here, against psutil, systemd-detect-virt and the CPU time of a real child."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from edgeclip.bench.device import flags, surroundings
from tests.bench.device.trees import DESKTOP, ORIN_NANO, plant
from tests.mutants import broken

SPIN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"
TREE = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SPIN.format(0.2)!r}])\n{SPIN.format(0.1)}"


def test_a_desktop(tmp_path):
    machine = surroundings.describe(plant(tmp_path, DESKTOP))
    assert (machine.product, machine.virtual, machine.memory_bytes, machine.load) == (
        "Dell Inc. OptiPlex 7080",
        "",
        32_602_340 * 1024,
        0.31,
    )
    plant(
        tmp_path,
        {
            "sys/class/dmi/id/sys_vendor": "To Be Filled By O.E.M.",
            "sys/class/dmi/id/product_name": "System Product Name",
        },
    )
    assert surroundings.describe(tmp_path).product == ""
    plant(tmp_path, {"sys/class/dmi/id/sys_vendor": "Dell Inc.", "proc/loadavg": "busy"})
    machine = surroundings.describe(tmp_path)
    assert (machine.product, machine.load) == ("", None)


GUEST = {"proc/cpuinfo": "flags : sse hypervisor avx2\n"}
CLOCKS = "sys/devices/system/clocksource/clocksource0/available_clocksource"


@pytest.mark.parametrize(
    ("files", "virtual"),
    [(ORIN_NANO, ""), (GUEST, "virtual machine"), ({**GUEST, CLOCKS: "tsc kvm-clock"}, "kvm"), ({**GUEST, CLOCKS: "hyperv_clocksource_tsc_page"}, "hyper-v"),
     ({**GUEST, "sys/class/dmi/id/sys_vendor": "Amazon EC2", "sys/class/dmi/id/product_name": "m7i.large", CLOCKS: "kvm-clock tsc"}, "kvm (EC2)"),
     ({"proc/cpuinfo": "flags : sse", "sys/class/dmi/id/sys_vendor": "Amazon EC2", "sys/class/dmi/id/product_name": "m7i.metal-24xl"}, ""),
     ({"proc/cpuinfo": "Features : asimd", "sys/class/dmi/id/sys_vendor": "Amazon EC2", "sys/class/dmi/id/product_name": "c7g.metal"}, ""),
     ({"proc/cpuinfo": "Features : asimd", "sys/class/dmi/id/sys_vendor": "QEMU"}, "kvm"),
     ({**GUEST, "sys/hypervisor/type": "xen"}, "xen"), ({"proc/cpuinfo": "flags : sse", ".dockerenv": ""}, "docker"),
     ({"proc/cpuinfo": "flags : sse", "proc/1/cgroup": "0::/kubepods.slice/x/cri-containerd-1.scope"}, "kubernetes"),
     ({"proc/cpuinfo": "flags : sse", "run/.containerenv": ""}, "podman"), ({**GUEST, CLOCKS: "kvm-clock", ".dockerenv": ""}, "kvm, docker"),
     ({"proc/cpuinfo": "flags : sse hypervisor", "proc/sys/kernel/osrelease": "5.15.153.1-microsoft-standard-WSL2"}, "wsl"), ({}, None)],
)  # fmt: skip
def test_virtual(tmp_path, files, virtual):
    assert surroundings.virtual(plant(tmp_path, files)) == virtual


def test_here_as_systemd_says():
    if shutil.which("systemd-detect-virt") is None:
        pytest.skip("systemd-detect-virt is not installed")
    said = [
        subprocess.run(["systemd-detect-virt", kind], capture_output=True, text=True).stdout.strip()
        for kind in ("--vm", "--container")
    ]
    found = (surroundings.virtual() or "").split(", ")
    for word in said:
        if word in (
            "kvm",
            "xen",
            "vmware",
            "docker",
            "podman",
            "lxc",
            "wsl",
        ):  # the rest is called otherwise there
            assert any(part.startswith(word) for part in found)
        elif word == "none":
            continue
    if said == ["none", "none"]:
        assert found == [""]


def test_memory_as_psutil_says():
    psutil = pytest.importorskip("psutil")
    assert surroundings.describe().memory_bytes == psutil.virtual_memory().total


def ours(spent=surroundings.spent):
    """Seconds of CPU that are found for a child which has a child."""
    before = spent()
    subprocess.run([sys.executable, "-c", TREE], check=True)
    return (spent().ours - before.ours) / os.sysconf("SC_CLK_TCK")


def test_children_and_theirs_are_ours():
    before = sum(os.times()[:4])
    assert ours() == pytest.approx(sum(os.times()[:4]) - before, abs=0.1)  # of some 0.4 s; ticks are 10 ms


def test_the_check_above_bites():
    assert ours(broken(surroundings.spent, "fields[11:15]", "fields[11:13]")) < 0.15  # what looking costs


def test_a_living_child_is_ours():
    before = surroundings.spent()
    with subprocess.Popen(
        [sys.executable, "-c", SPIN.format(0.1) + "\nprint('done', flush=True)\ninput()"], stdin=-1, stdout=-1
    ) as child:
        assert child.stdout.readline() == b"done\n"
        assert surroundings.spent().ours - before.ours >= 9
        child.communicate(b"\n")


def stat(tmp_path, user, idle, steal, processes):
    plant(
        tmp_path, {"proc/stat": f"cpu  {user} 0 100 {idle} 50 0 0 {steal} 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"}
    )
    for pid, (parent, ticks) in processes.items():
        plant(
            tmp_path,
            {f"proc/{pid}/stat": f"{pid} (a ) b) S {parent} 1 1 0 -1 4 1 1 1 1 {ticks} 1 2 3 20 0 1 0 9"},
        )
    return surroundings.spent(tmp_path, 10)


def test_shares(tmp_path):
    first = stat(tmp_path, 1000, 5000, 10, {10: (1, 100), 11: (10, 50), 12: (11, 20), 13: (1, 900)})
    assert (first.total, first.busy, first.stolen, first.ours) == (6160, 1100, 10, 170 + 3 * 6)
    second = stat(tmp_path, 1600, 5300, 110, {10: (1, 200), 11: (10, 250), 12: (11, 20), 13: (1, 1200)})
    found = flags.shares(first, second)
    assert found.others == pytest.approx(0.3)  # of 1000 ticks 600 were busy, 300 of them ours
    assert found.stolen == pytest.approx(0.1)
    assert flags.shares(first, first) == flags.Shares(None, None)
    assert flags.shares(None, second).others is None
    assert surroundings.spent(tmp_path / "nowhere") is None


def test_load_and_memory(tmp_path):
    plant(tmp_path, {**DESKTOP, "proc/stat": "cpu  100 0 0 900 0 0 0 0 0 0\n"})
    source = surroundings.open_source(tmp_path)
    assert source.sample().gauges == pytest.approx({"memory used": (32602340 - 28117848) * 1.024e-3})
    plant(tmp_path, {"proc/stat": "cpu  175 0 0 925 0 0 0 0 0 0\n"})
    assert source.sample().gauges["cpu load"] == 75
    plant(tmp_path, {"proc/stat": "cpu  what\n"})
    assert "cpu load" not in source.sample().gauges
    assert "state.cpu_load" in surroundings.open_source(tmp_path).not_measured


@pytest.mark.parametrize(
    ("groups", "file"),
    [("0::/", "sys/fs/cgroup/cpu.stat"), ("0::/user.slice/app.scope", "sys/fs/cgroup/user.slice/cpu.stat"),
     ("9:name=systemd:/\n1:cpu,cpuacct:/docker/4f", "sys/fs/cgroup/cpu/cpu.stat"), ("1:cpu:/a\n0::/", "sys/fs/cgroup/cpu/a/cpu.stat")],
)  # fmt: skip
def test_quota(tmp_path, groups, file):
    plant(
        tmp_path,
        {"proc/self/cgroup": groups, file: "usage_usec 1\nnr_periods 9\nnr_throttled 4\nthrottled_usec 77\n"},
    )
    source = surroundings.open_source(tmp_path)
    assert source.sample().events == {surroundings.QUOTA: 4}
    plant(tmp_path, {file: "nr_periods 30\nnr_throttled 16\n"})
    assert source.sample().events == {surroundings.QUOTA: 16}


def test_swapping(tmp_path):
    plant(tmp_path, {"proc/vmstat": "pgpgin 5\npswpin 12\npswpout 30\n"})
    assert surroundings.open_source(tmp_path).sample().events == {
        "the machine swapped {} pages of memory": 42
    }


def test_a_sample_costs_less_than_a_millisecond():
    source = surroundings.open_source()
    begun = time.thread_time_ns()  # of this thread: other programs do not count
    for _ in range(50):
        source.sample()
    assert (
        time.thread_time_ns() - begun
    ) / 50 < 1e6  # 0.3 ms on two cores of an EPYC, all other sources 0.01
