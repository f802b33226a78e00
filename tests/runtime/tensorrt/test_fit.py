"""Which engine may run where: one case for each rule, on both sides of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgeclip.bundle import Bundle
from edgeclip.runtime.cuda import Device
from edgeclip.runtime.tensorrt.fit import Here, misfit, this_platform
from edgeclip.runtime.tensorrt.record import Record
from tests.runtime.tensorrt.kept import CARD, RTX, library, proper, record_of

A5000 = replace(CARD, name="NVIDIA RTX A5000")
L4 = Device(0, "NVIDIA L4", (8, 9), 24 << 30, "13.0")
TURING = Device(0, "Tesla T4", (7, 5), 16 << 30, "13.0")
BLACKWELL = Device(0, "NVIDIA GeForce RTX 5090", (12, 0), 32 << 30, "13.1")


def here_(record: Record, **changes: Any) -> Record:
    return replace(record, platform=this_platform(), **changes)


def test_what_was_built_here_fits_here(toy: Bundle) -> None:
    here = Here(toy, library("10.3.0.30"), CARD)
    assert misfit(here_(proper(toy)), here) == ""
    assert misfit(here_(record_of(toy)), Here(toy, RTX, CARD)) == ""
    assert misfit(here_(record_of(toy)), Here()) == "", "nothing else is asked"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"bundle": "0" * 64}, "built for bundle 000000000000, this one is "),
        ({"graphs": {}}, "built from another graph of image-fp32"),
        ({"graphs": {"graphs/image-fp32.onnx": "0" * 64}}, "built from another graph of image-fp32"),
        ({"made_from": "image-bf16"}, "built from variant image-bf16, which the bundle does not have"),
        ({"library": "tensorrt"}, "built by tensorrt, opened by tensorrt-rtx"),
        ({"version": "1.7.1.115"}, "built by tensorrt-rtx 1.7.1.115, this is 1.7.1.116"),
        ({"platform": "linux-riscv64"}, "built on linux-riscv64, this is "),
        ({"platform": ""}, "built on , this is "),
    ],
)
def test_what_does_not_fit(toy: Bundle, changes: dict[str, Any], why: str) -> None:
    assert misfit(here_(record_of(toy)), Here(toy, RTX, CARD)) == ""
    assert misfit(replace(here_(record_of(toy)), **changes), Here(toy, RTX, CARD)).startswith(why)


def test_a_graph_that_was_made_beside_the_engine_is_of_a_variant_that_is_there(toy: Bundle) -> None:
    made = here_(record_of(toy, made_from="image-fp32", graphs={"graphs/x.onnx": "1" * 64}))
    assert misfit(made, Here(toy, RTX, CARD)) == ""


@pytest.mark.parametrize(
    ("built", "now", "exact", "compatible"),
    [
        ("10.3.0.30", "10.3.0.30", True, True),
        ("10.3.0.30", "10.3.0.31", False, True),
        ("10.3.0.30", "10.16.1.11", False, True),  # not by letters: "16" < "3"
        ("10.16.1.11", "10.3.0.30", False, False),
        ("10.16.1.11", "11.4.0.106", False, True),
        ("11.4.0.106", "10.16.1.11", False, False),
        ("11.0.0.114", "11.4.0.106", False, True),
        ("10.16.1.11", "12.0.0.1", False, False),
        ("9.3.0.1", "10.3.0.30", False, False),
        ("8.6.1.6", "10.3.0.30", False, True),
        ("8.6.1.6", "11.4.0.106", False, False),
    ],
)
def test_versions(toy: Bundle, built: str, now: str, exact: bool, compatible: bool) -> None:
    """Source: support matrix of TensorRT 11.4.1, engine portability."""
    here = Here(toy, library(now), CARD)
    assert (misfit(here_(proper(toy, built)), here) == "") is exact
    assert (misfit(here_(proper(toy, built, version_compatible=True)), here) == "") is compatible


def test_rtx_engines_run_under_the_very_release_that_built_them(toy: Bundle) -> None:
    """Source: TensorRT-RTX documentation, engine compatibility: none between releases."""
    record = record_of(toy)
    compatible = here_(record, options=replace(record.options, version_compatible=True))
    assert misfit(compatible, Here(toy, library("1.7.2.1", "tensorrt-rtx"), CARD))


@pytest.mark.parametrize(
    ("level", "device", "fits"),
    [
        ("", CARD, True),
        ("", replace(CARD, index=1, memory=15 << 30), True),
        ("", replace(CARD, memory=8 << 30), False),  # as another board of Jetson Orin
        ("same", replace(CARD, memory=8 << 30), True),
        ("", A5000, False),  # of the same capability, but tuned for another card
        ("", replace(CARD, capability=(8, 7)), False),
        ("same", A5000, True),
        ("same", L4, False),
        ("ampere+", L4, True),
        ("ampere+", BLACKWELL, True),
        ("ampere+", TURING, False),
    ],
)
def test_devices(toy: Bundle, level: str, device: Device, fits: bool) -> None:
    here = Here(toy, library("10.3.0.30"), device)
    why = misfit(here_(proper(toy, hardware_compatible=level)), here)
    assert (why == "") is fits
    assert fits or device.name in why


@pytest.mark.parametrize(("device", "fits"), [(CARD, True), (A5000, True), (L4, True), (BLACKWELL, False)])
def test_ahead_of_time_targets(toy: Bundle, device: Device, fits: bool) -> None:
    why = misfit(here_(record_of(toy)), Here(toy, RTX, device))
    assert (why == "") is fits
    assert fits or why == "built for sm86, sm89, this is NVIDIA GeForce RTX 5090 (sm120)"


def test_rtx_engines_of_a_device_run_on_its_kind(toy: Bundle) -> None:
    record = record_of(toy)
    own = here_(record, device=CARD, options=replace(record.options, archs=()))
    assert misfit(own, Here(toy, RTX, A5000)) == ""
    assert misfit(own, Here(toy, RTX, L4)) == "built for NVIDIA RTX A4000 (sm86), this is NVIDIA L4 (sm89)"
    assert misfit(replace(own, device=None), Here(toy, RTX, CARD)) == "built for no device"


@pytest.mark.parametrize(
    ("now", "fits"), [("13.0", True), ("13.10", True), ("12.9", False), ("9.2", False), ("", False)]
)
def test_drivers(toy: Bundle, now: str, fits: bool) -> None:
    here = Here(toy, library("10.3.0.30"), replace(CARD, driver=now))
    assert (misfit(here_(proper(toy)), here) == "") is fits
