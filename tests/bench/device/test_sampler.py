"""The sampler on planted sources and an injected clock; and once for real."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgeclip.bench.device import Sampler, describe_device, flags, jetson, nvml, rapl, sampler
from edgeclip.bench.device.source import Reading
from tests.bench.device.test_jetson import ORIN_NANO_6
from tests.bench.device.test_nvml import Stand
from tests.bench.device.trees import AGX_ORIN, DESKTOP, ORIN_NANO, plant, policy

SECOND = 10**9


class Planted:
    """A source that says what it is told to."""

    def __init__(self, readings, part="", covers="", tells=False, missing=None):
        self.readings, self.part, self.covers, self.tells = iter(readings), part, covers, tells
        self.not_measured, self.closed, self.last = missing or {}, 0, Reading()

    def sample(self):
        self.last = next(self.readings, self.last)
        if isinstance(self.last, Exception):
            raise self.last
        return self.last

    def close(self):
        self.closed += 1


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)


def sampled(sources, steps=20, idle_s=0.0, gpu=True):
    """A sampler after `steps` samples of half a second. The thread waits for an hour."""
    clock = Time()
    made = Sampler(sources=sources, clock=clock, sleep=clock.sleep, idle_s=idle_s, root=Path("/nowhere"))
    made._over.wait = lambda _: True  # the thread ends at once
    with made:
        for _ in range(steps):
            clock.sleep(0.5)
            made.tick()
            made.tick()  # not due
        made.gpu = gpu
    return made


def counter(*watts):
    """Readings of a counter that runs at these powers, one for each half second; the first is asked twice."""
    total = np.concatenate([[0, 0], np.cumsum(watts) / 2])
    return [Reading(energy_j=float(joules)) for joules in total]


def test_energy_between_instants():
    made = sampled([Planted(counter(*[10] * 10, *[30] * 10), "cpu", "RAPL package-0")])
    assert made.energy_j(0, 5 * SECOND) == 50
    assert made.energy_j(4 * SECOND, 6 * SECOND) == 40
    assert made.energy_j(int(5.25 * SECOND), int(5.75 * SECOND)) == 15
    assert made.energy_j(5 * SECOND, 11 * SECOND) is None  # after the block
    state = made.state()
    assert (state.energy_source, state.mean_power_w) == ("RAPL package-0", 20)
    (power,) = [series for series in state.series if series.name == "cpu power"]
    assert (power.unit, power.values[0], power.values[-1], power.at_s[0]) == ("W", 10, 30, 0.5)


def test_idle_power_is_watched_first():
    made = sampled([Planted(counter(*[4] * 4, *[20] * 20), "board", "rails VDD_IN")], idle_s=2.0)
    assert made.state().idle_power_w == 4
    assert made.energy_j(2 * SECOND, 4 * SECOND) == 40


def test_whose_energy_counts():
    def energy(gpu):
        cpu, card = (
            Planted(counter(*[10] * 20), "cpu", "RAPL package-0"),
            Planted(counter(*[200] * 20), "gpu", "NVML"),
        )
        made = sampled([cpu, card], gpu=gpu)
        return made.state().energy_source, made.energy_j(0, 10 * SECOND)

    assert energy(True) == ("RAPL package-0 + NVML", 2100)
    assert energy(False) == ("RAPL package-0", 100)
    board = sampled(
        [Planted(counter(*[10] * 20), "gpu", "NVML"), Planted([Reading(power_w=7)], "board", "rails VDD_IN")]
    )
    assert (board.state().energy_source, board.energy_j(SECOND, 3 * SECOND)) == ("rails VDD_IN", 14)
    alone = sampled([Planted(counter(*[10] * 20), "gpu", "NVML")], gpu=False)
    assert alone.energy_j(0, SECOND) is None
    assert alone.state().energy_source is None
    assert alone.not_measured["state.power"].startswith("only the GPU tells")


def test_a_part_that_stops_makes_no_smaller_sum():
    cpu = Planted([*counter(*[10] * 5), *[Reading()] * 30], "cpu", "RAPL package-0")
    made = sampled([cpu, Planted(counter(*[200] * 20), "gpu", "NVML")])
    assert made.energy_j(0, 2 * SECOND) == 420
    assert made.energy_j(0, 8 * SECOND) is None


def test_nothing_to_ask():
    made = sampled([])
    assert made.energy_j(0, SECOND) is None
    state = made.state()
    assert (state.series, state.throttled, state.energy_source, state.idle_power_w, state.mean_power_w) == (
        (),
        None,
        None,
        None,
        None,
    )
    assert set(made.not_measured) == {"state.power", "state.throttled"}


def test_a_clock_that_goes_on_while_it_is_asked():
    class Running(Time):
        def __call__(self):
            self.now += 1000
            return self.now

    clock = Running()

    class Steady(Planted):
        def sample(self):
            return Reading(energy_j=10 * clock.now / 1e9)

    made = Sampler(
        sources=[Steady([], "cpu", "RAPL package-0")],
        clock=clock,
        sleep=clock.sleep,
        idle_s=2.0,
        root=Path("/nowhere"),
    )
    made._over.wait = lambda _: True
    with made:
        begun = clock()
        for _ in range(10):
            clock.sleep(0.5)
            made.tick()
        clock.sleep(0.2)
        assert made.energy_j(begun, clock()) == pytest.approx(52, rel=1e-3)
        assert made.energy_j(begun, clock() + SECOND) is None  # not yet
    assert made.state().idle_power_w == pytest.approx(10, rel=1e-3)
    assert made.state().mean_power_w == pytest.approx(10, rel=1e-3)


def test_a_source_that_does_not_open(tmp_path, monkeypatch):
    def fail(root):
        raise OSError("no bus")

    monkeypatch.setattr(sampler.thermal, "open_source", fail)
    found, failed = sampler.open_sources(plant(tmp_path, ORIN_NANO))
    assert failed == {"state.thermal": "OSError: no bus"}
    assert [type(source).__name__ for source in found] == ["Surroundings", "Clock", "Rapl", "Nvml", "Jetson"]


def test_reasons_of_the_sources_are_kept_unless_another_tells():
    first = Planted([Reading({"gpu clock": 900.0})], missing={"state.memory_clock": "readable by root only"})
    second = Planted(
        [Reading({"gpu clock": 1.0, "gpu load": 50.0})], missing={"state.gpu_clock": "there is none"}
    )
    made = sampled([first, second])
    assert "state.gpu_clock" not in made.not_measured
    assert made.not_measured["state.memory_clock"] == "readable by root only"
    assert {series.name: set(series.values) for series in made.state().series} == {
        "gpu clock": {900.0},
        "gpu load": {50.0},
    }


def test_a_source_that_fails_is_left_out_with_its_reason():
    source = Planted([Reading({"gpu clock": 900.0})] * 4 + [OSError("the bus fell off")])
    other = Planted([Reading({"cpu load": 5.0})])
    made = sampled([source, other])
    assert made.not_measured["state.planted"] == "stopped: OSError: the bus fell off"
    assert source.closed == 1
    series = {found.name: found for found in made.state().series}
    assert len(series["gpu clock"].values) == 3
    assert len(series["cpu load"].values) == 22
    assert other.closed == 1


def test_throttling():
    calm = Planted([Reading(events={"slowed {} times": 5})], tells=True)
    assert sampled([calm]).state().throttled is False
    hot = Planted(
        [Reading(events={"slowed {} times": 5})] * 10 + [Reading(events={"slowed {} times": 9})], tells=True
    )
    state = sampled([hot]).state()
    assert state.throttled
    assert "slowed 4 times" in state.flags
    held = Planted([Reading()] * 12 + [Reading(held=("GPU: power cap",))], tells=True)
    assert "GPU: power cap held a clock down in 50 % of the samples" in sampled([held]).state().flags
    assert sampled([Planted([Reading(events={"the machine swapped {} pages of memory": 0}),
                             Reading(events={"the machine swapped {} pages of memory": 0}),
                             Reading(events={"the machine swapped {} pages of memory": 7})])]).state().throttled is None  # fmt: skip


def loaded(*clocks, load=100.0):
    return [Reading({"cpu clock": float(clock), "cpu load": load}) for clock in clocks]


def test_a_falling_clock():
    steady = loaded(*[3400, 3390, 3410, 3400] * 5)
    assert flags.of_fall(steady, 2) == []
    assert flags.of_fall([*steady, *loaded(*[2800] * 20)], 2) == [
        "the CPU clock fell from 3400 to 2800 MHz under the same load"
    ]
    assert flags.of_fall([*steady, *loaded(*[800] * 15, load=0.0)], 2) == []  # it idles
    assert flags.of_fall(loaded(*[3400] * 20, *[800] * 20, load=0.0), 2) == []
    assert flags.of_fall([*steady, *loaded(*[3100] * 15, load=50.0)], 4) == []  # half as many CPUs
    assert flags.of_fall(loaded(3400, 2800), 2) == []  # too few to say
    made = sampled([Planted([*loaded(*[3400] * 30), *loaded(*[2800] * 30)])], steps=60)
    assert made.state().throttled


def test_flags_of_others():
    found = flags.of_shares(flags.Shares(0.31, 0.02), 1.7, 2)
    assert found == [
        "other programs used 31 % of the machine's CPU time: figures are not of this bundle alone",
        "other guests of the host took 2 % of the CPU time", "the machine was busy before the run: load 1.7 on 2 CPUs",
    ]  # fmt: skip
    assert flags.of_shares(flags.Shares(0.04, 0.001), 0.4, 2) == []
    assert flags.of_shares(flags.Shares(None, None), None, 2) == []


def test_long_runs_are_thinned():
    made = sampled([Planted([Reading({"cpu load": float(value)}) for value in range(5000)])], steps=3000)
    (series,) = made.state().series
    assert len(series.values) == len(series.at_s) == 600
    assert (series.values[0], series.values[-1]) == (1, 3002)
    assert series.at_s[-1] == 1500


def boards(root, monkeypatch):
    monkeypatch.setattr(sampler.cpu, "usable", lambda: frozenset({0, 1}))
    clock = Time()
    made = Sampler(root=root, clock=clock, sleep=clock.sleep, idle_s=1.0)
    made._over.wait = lambda _: True
    with made:
        for _ in range(10):
            clock.sleep(0.5)
            made.tick()
    return made


def test_a_jetson(tmp_path, monkeypatch):
    made = boards(plant(tmp_path, ORIN_NANO), monkeypatch)
    state = made.state()
    assert state.energy_source == "rails VDD_IN (the module, without its carrier board)"
    assert state.idle_power_w == pytest.approx(7.677, abs=1e-3)
    assert made.energy_j(SECOND, 5 * SECOND) == pytest.approx(4 * 5.024 * 1.528)
    assert {(series.name, series.unit) for series in state.series} == {
        ("cpu clock", "MHz"), ("gpu clock", "MHz"), ("memory clock", "MHz"), ("gpu load", "%"), ("cpu temperature", "°C"),
        ("gpu temperature", "°C"), ("junction temperature", "°C"), ("memory used", "MB"), ("board power", "W"),
    }  # fmt: skip
    assert state.throttled is False
    assert state.flags == (
        "the CPU's governor is schedutil: its clock may follow the load", "jetson_clocks is off: the GPU's clock follows the load",
    )  # fmt: skip
    device = describe_device(tmp_path)
    assert device.name == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (device.cpu, device.governor, device.power_mode) == (
        "6 x Cortex-A78AE",
        "schedutil",
        "jetson_clocks off",
    )
    assert device.packages["jetson-linux"] == "36.4.3"
    (gpu,) = device.gpus
    assert (gpu.driver, gpu.max_clock_mhz, gpu.memory_bytes) == (
        "Jetson Linux 36.4.3",
        1020,
        7_802_864 * 1024,
    )
    assert describe_device(plant(tmp_path / "agx", AGX_ORIN)).power_mode == "jetson_clocks on"
    plant(tmp_path / "agx", policy(0, "0 1", "schedutil", 729_600))
    assert describe_device(tmp_path / "agx").power_mode == "jetson_clocks off"  # the CPU's clock is free


def test_a_jetson_whose_rails_are_no_files(tmp_path, monkeypatch):
    files = {
        name: content for name, content in ORIN_NANO.items() if "ina" not in content and "hwmon1" not in name
    }
    plant(
        tmp_path,
        {**files, "usr/bin/tegrastats": f"#!/bin/sh\nwhile :; do echo '{ORIN_NANO_6}'; sleep 0.05; done"},
    )
    (tmp_path / "usr/bin/tegrastats").chmod(0o755)
    state = boards(tmp_path, monkeypatch).state()
    assert state.energy_source == "tegrastats VDD_IN (the module, without its carrier board)"
    assert state.mean_power_w == pytest.approx(4.542)


def test_a_desktop(tmp_path, monkeypatch):
    made = boards(plant(tmp_path, DESKTOP), monkeypatch)
    assert made.state().energy_source == "RAPL package-0, dram"
    assert made.state().throttled is False
    device = describe_device(tmp_path)
    assert (device.name, device.cpu, device.virtual) == (
        "Dell Inc. OptiPlex 7080",
        "Intel(R) Core(TM) i7-10700",
        "",
    )
    assert device.system.startswith("Ubuntu 22.04.4 LTS, ")


def test_a_server(tmp_path, monkeypatch):
    library = Stand()
    monkeypatch.setattr(nvml, "load", lambda: library)
    plant(tmp_path, {**DESKTOP, nvml.NODE: ""})
    state = boards(tmp_path, monkeypatch).state()
    assert state.energy_source == "RAPL package-0, dram + NVML (the GPU alone)"
    assert {"gpu clock", "gpu temperature", "gpu load", "gpu power", "cpu power"} <= {
        series.name for series in state.series
    }
    (gpu,) = describe_device(tmp_path).gpus
    assert (gpu.name, gpu.power_limit_w) == ("NVIDIA H100 80GB HBM3", 700)
    assert library.shut == 2


def test_the_same_names_everywhere():
    for module in (
        sampler.cpu,
        sampler.thermal,
        rapl,
        nvml,
        jetson,
        sampler.surroundings,
        sampler.tegrastats,
    ):
        assert all(callable(getattr(module, name)) for name in ("present", "describe", "open_source"))


def test_here():
    psutil = pytest.importorskip("psutil")
    device = describe_device()
    assert device.logical_cores == len(psutil.Process().cpu_affinity())
    assert device.memory_bytes == psutil.virtual_memory().total
    assert device.packages["numpy"] == np.__version__
    with Sampler(idle_s=0, period_s=0.05) as made:
        begun = time.perf_counter_ns()
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.4)"], check=True)
        ended = time.perf_counter_ns()
        energy = made.energy_j(begun, ended)
        assert (energy is None) == (made.state().energy_source is None)
    state = made.state()
    (load,) = [series for series in state.series if series.name == "cpu load"]
    assert len(load.values) >= 3
    assert all(0 <= value <= 100 for value in load.values)
    for field, why in made.not_measured.items():
        assert field.startswith(("state.", "device."))
        assert "\n" not in why
