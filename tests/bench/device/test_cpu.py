"""The CPU as the kernel shows it, of several machines; the one here against `lscpu`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeclip.bench.device import cpu
from tests.bench.device.trees import AGX_ORIN, CPU0, DESKTOP, FREQ, NANO, ORIN_NANO, THOR, plant


def test_desktop(tmp_path):
    found = cpu.describe(plant(tmp_path, DESKTOP), frozenset({0, 2}))
    assert (found.name, found.governor, found.fixed) == (
        "Intel(R) Core(TM) i7-10700",
        "performance, powersave",
        False,
    )
    assert cpu.describe(tmp_path, frozenset({2})).governor == "performance"


def test_the_clock_is_the_highest_of_our_cpus(tmp_path):
    plant(tmp_path, DESKTOP)
    assert cpu.Clock(tmp_path, frozenset({0, 1})).sample().gauges == {
        "cpu clock": 4700.0
    }  # CPU 2 runs at 5000
    assert cpu.Clock(plant(tmp_path / "orin", ORIN_NANO), frozenset({4})).sample().gauges == {
        "cpu clock": 729.6
    }


def test_heat_is_counted(tmp_path):
    clock = cpu.Clock(plant(tmp_path, DESKTOP), frozenset({0, 1}))
    assert clock.tells
    (sentence,) = clock.sample().events
    plant(tmp_path, {f"{CPU0}/thermal_throttle/core_throttle_count": "19"})
    assert clock.sample().events == {sentence: 19}
    plant(tmp_path, {f"{CPU0}/thermal_throttle/core_throttle_count": ""})
    assert clock.sample().events == {}  # not 0: that would look like a fall


@pytest.mark.parametrize(
    ("tree", "name"),
    [(ORIN_NANO, "6 x Cortex-A78AE"), (AGX_ORIN, "6 x Cortex-A78AE"), (NANO, "4 x Cortex-A57"), (THOR, "14 x Neoverse-V3AE"),
     ({"proc/cpuinfo": "CPU implementer : 0x4e\nCPU part : 0x003\n" * 2 + "CPU implementer : 0x41\nCPU part : 0xd07\n" * 4}, "4 x Cortex-A57, 2 x Denver 2"),
     ({"proc/cpuinfo": "CPU implementer : 0x46\nCPU part : 0x001\n"}, "1 x implementer 0x46 part 0x1"),
     ({"proc/cpuinfo": "processor : 0\n"}, "")],
)  # fmt: skip
def test_arm_by_part(tmp_path, tree, name):
    assert cpu.describe(plant(tmp_path, tree)).name == name


@pytest.mark.parametrize("value", ["", "fast", "4.6e6", "0", "<unknown>"])
def test_a_malformed_clock_is_none(tmp_path, value):
    clock = cpu.Clock(plant(tmp_path, {**DESKTOP, f"{FREQ}0/scaling_cur_freq": value}), frozenset({0}))
    assert clock.sample().gauges == {}


def test_without_cpufreq(tmp_path):
    plant(tmp_path, {"proc/cpuinfo": "flags : sse\ncpu MHz : 2400.5\n\nflags : sse\ncpu MHz : 3100.25\n"})
    clock = cpu.Clock(tmp_path)
    assert clock.sample().gauges == {"cpu clock": 3100.25}
    assert "device.governor" in clock.not_measured
    plant(tmp_path, {"proc/cpuinfo": "flags : sse hypervisor\ncpu MHz : 2400.5\n"})
    guest = cpu.Clock(tmp_path)
    assert guest.sample().gauges == {}
    assert "nominal clock" in guest.not_measured["state.cpu_clock"]


def test_here_as_lscpu_says():
    if shutil.which("lscpu") is None:
        pytest.skip("lscpu is not installed")
    said = json.loads(
        subprocess.run(
            ["lscpu", "-J"],
            capture_output=True,
            text=True,
            check=True,
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        ).stdout
    )
    fields = {row["field"]: row["data"] for row in said["lscpu"]}
    if Path("/proc/cpuinfo").exists() and "model name" in Path("/proc/cpuinfo").read_text():
        assert cpu.describe().name == fields["Model name:"]
    assert len(cpu.usable()) <= int(fields["CPU(s):"])
