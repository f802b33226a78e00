"""Temperatures and what cools by slowing."""

from __future__ import annotations

import pytest

from edgeclip.bench.device import thermal
from tests.bench.device.trees import (
    AGX_ORIN,
    COOL,
    DESKTOP,
    HWMON,
    NANO,
    ORIN_NANO,
    THOR,
    ZONE,
    cooling,
    plant,
    zone,
)


@pytest.mark.parametrize(
    ("tree", "gauges"),
    [(DESKTOP, {"cpu temperature": 64.0}),  # the hottest core, not the disk's 81.85 nor the case's 27.8
     (ORIN_NANO, {"cpu temperature": 52.875, "gpu temperature": 51.031, "junction temperature": 53.062}),
     (AGX_ORIN, {"cpu temperature": 47.406, "junction temperature": 47.406}),  # the GPU sleeps: -256
     (NANO, {"cpu temperature": 41.5, "gpu temperature": 40.0}), (THOR, {"cpu temperature": 53.7, "junction temperature": 55.1})],
)  # fmt: skip
def test_boards(tmp_path, tree, gauges):
    source = thermal.open_source(plant(tmp_path, tree))
    assert source.sample().gauges == gauges
    assert source.not_measured == {}
    assert set(gauges) <= set(thermal.describe(tmp_path))


def test_what_cools_by_slowing_is_held(tmp_path):
    source = thermal.open_source(plant(tmp_path, ORIN_NANO))
    assert source.tells
    assert source.sample().held == ()  # the fan's 2 is not slowing
    plant(tmp_path, {f"{COOL}1/cur_state": "1", f"{COOL}3/cur_state": "4"})
    assert source.sample().held == ("cpu-throttle-alert", "devfreq-17000000.gpu")
    assert thermal.open_source(plant(tmp_path / "thor", THOR)).sample().held == (
        "devfreq-gpu-gpc-0",
        "gpu-throttle-alert",
    )


def test_of_two_devices_of_one_kind_either_counts(tmp_path):
    source = thermal.open_source(
        plant(tmp_path, {**cooling(0, "Processor", 3), **cooling(1, "Processor", 0)})
    )
    assert source.sample().held == ("Processor",)


def test_a_pc_does_not_tell(tmp_path):
    assert not thermal.open_source(plant(tmp_path, DESKTOP)).tells


def test_amd_is_read_where_it_is_not_set_off(tmp_path):
    chip = f"{HWMON}2"
    plant(
        tmp_path, {f"{chip}/name": "k10temp", f"{chip}/temp1_input": "80000", f"{chip}/temp1_label": "Tctl"}
    )
    assert thermal.open_source(tmp_path).sample().gauges == {"cpu temperature": 80.0}
    plant(tmp_path, {f"{chip}/temp2_input": "53000", f"{chip}/temp2_label": "Tdie"})
    assert thermal.open_source(tmp_path).sample().gauges == {"cpu temperature": 53.0}


@pytest.mark.parametrize("value", ["", "hot", "-256000", "511000", "55.5"])
def test_a_malformed_temperature_is_none(tmp_path, value):
    source = thermal.open_source(plant(tmp_path, {**zone(0, "cpu-thermal", value)}))
    assert source.sample().gauges == {}
    assert "no sensor" in source.not_measured["state.cpu_temperature"]
    plant(tmp_path, {f"{ZONE}0/temp": "40000"})
    assert source.sample().gauges == {"cpu temperature": 40.0}


def test_nothing_there(tmp_path):
    assert not thermal.present(tmp_path)
    assert thermal.open_source(tmp_path).sample().gauges == {}
