"""Counters of energy, and energy between two instants."""

from __future__ import annotations

import numpy as np
import pytest

from edgeclip.bench.device import rapl, source
from edgeclip.bench.device.meter import Meter
from tests.bench.device.trees import DESKTOP, plant
from tests.mutants import broken

PACKAGE, DRAM = "sys/class/powercap/intel-rapl:0", "sys/class/powercap/intel-rapl:0:1"


def joules(tmp_path, *steps):
    """Of a counter that wraps around within `steps` of microjoules."""
    counter = rapl.open_source(plant(tmp_path, DESKTOP))
    at, told = 262_143_000_000, [counter.sample().energy_j]
    for step in steps:
        at = (at + step) % 262_143_328_850
        plant(tmp_path, {f"{PACKAGE}/energy_uj": str(at)})
        told.append(counter.sample().energy_j)
    return told


def test_it_wraps_around(tmp_path):
    assert joules(tmp_path, 200_000, 40_000_000, 1_000_000) == pytest.approx([0, 0.2, 40.2, 41.2])


def test_the_check_above_bites(tmp_path, monkeypatch):
    monkeypatch.setattr(rapl.Rapl, "sample", broken(rapl.Rapl.sample, "(most or 0 if new < old else 0)", "0"))
    assert joules(tmp_path, 200_000, 40_000_000)[-1] < 0


def test_packages_and_their_memory_are_added(tmp_path):
    counter = rapl.open_source(plant(tmp_path, DESKTOP))
    assert counter.covers == "RAPL package-0, dram"  # core lies within, psys around
    assert counter.sample().energy_j == 0
    plant(tmp_path, {f"{PACKAGE}/energy_uj": "262143100000", f"{DRAM}/energy_uj": "5050000"})
    assert counter.sample().energy_j == pytest.approx(0.15)


def test_a_failed_reading_is_bridged(tmp_path):
    counter = rapl.open_source(plant(tmp_path, DESKTOP))
    counter.sample()
    plant(tmp_path, {f"{PACKAGE}/energy_uj": ""})
    assert counter.sample().energy_j is None
    plant(tmp_path, {f"{PACKAGE}/energy_uj": "262143200000"})
    assert counter.sample().energy_j == pytest.approx(0.2)


def test_only_root_may_read(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    plant(tmp_path, DESKTOP)
    number = source.number
    monkeypatch.setattr(rapl, "number", lambda path: None if path.name == "energy_uj" else number(path))
    monkeypatch.setattr(source.Path, "open", refuse)
    counter = rapl.open_source(tmp_path)
    assert counter.covers == ""
    assert counter.sample().energy_j is None
    assert counter.not_measured == {
        "state.cpu_power": f"{tmp_path / PACKAGE}/energy_uj is readable by root only (CVE-2020-8694): run as root, or sudo chmod a+r it"
    }


@pytest.mark.parametrize("value", ["", "many", "-5"])
def test_a_malformed_counter_is_none(tmp_path, value):
    counter = rapl.open_source(plant(tmp_path, {**DESKTOP, f"{DRAM}/energy_uj": value}))
    assert counter.sample().energy_j is None
    assert not rapl.present(tmp_path / "nowhere")


def test_a_counter_between_two_instants():
    meter = Meter()
    for second, total in [(0, 0.0), (1, 10.0), (2, 30.0), (3, 30.0)]:
        meter.add(second * 10**9, total, None)
    assert meter.between(10**9, 2 * 10**9) == 20
    assert meter.between(500_000_000, 2_500_000_000) == 25  # half of 10, 20, none
    at, watts = meter.powers()
    assert at.tolist() == [10**9, 2 * 10**9, 3 * 10**9]
    assert watts.tolist() == [10, 20, 0]


def test_powers_as_numpy_integrates():
    meter, at = Meter(), np.arange(0, 20.5, 0.5)
    watts = 8 + 5 * np.sin(at)
    for second, power in zip(at, watts, strict=True):
        meter.add(int(second * 1e9), None, float(power))
    fine = np.linspace(3.2, 17.9, 200_001)
    truth = (
        np.trapezoid(8 + 5 * np.sin(fine), fine)
        if hasattr(np, "trapezoid")
        else np.trapz(8 + 5 * np.sin(fine), fine)
    )
    assert meter.between(3_200_000_000, 17_900_000_000) == pytest.approx(truth, rel=0.005)
    np.testing.assert_array_equal(meter.powers()[1], watts)


def test_what_was_not_watched_is_none():
    meter = Meter()
    assert meter.between(0, 1) is None
    meter.add(5 * 10**9, None, 3.0)
    meter.add(6 * 10**9, None, None)
    meter.add(7 * 10**9, None, 5.0)
    assert meter.between(5 * 10**9, 7 * 10**9) == 8
    assert meter.between(4 * 10**9, 7 * 10**9) is None
    assert meter.between(5 * 10**9, 8 * 10**9) is None
    meter.add(12 * 10**9, None, 5.0)  # five seconds unseen
    assert meter.between(5 * 10**9, 12 * 10**9) is None
    assert meter.between(5 * 10**9, 7 * 10**9) == 8
    counter = Meter()
    counter.add(0, 0.0, None)
    counter.add(60 * 10**9, 6.0, None)  # a counter saw it all
    assert counter.between(0, 60 * 10**9) == 6
