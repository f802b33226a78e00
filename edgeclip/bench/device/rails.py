"""A Jetson's power rails: which files give them, and which of them together cover the module.

Source: "Power Monitor" in NVIDIA's Jetson Linux developer guides (r32, r35, r36, r38); docs.kernel.org/hwmon/ina3221.html (mV, mA)
and ina238.html (power1_input, microwatts); the older ina3221x driver's iio files (rail_name_N, in_powerN_input, mW).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from edgeclip.bench.device.source import ROOT, number, text

# Rails that together are the module's input, the first that are all there. The carrier board is in none of them.
TOTALS = (
    ("VDD_IN",),  # Orin Nano and NX, Xavier NX, TX2
    ("POM_5V_IN",),  # Nano
    ("VIN",),  # Thor
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin; VDDQ_VDD2_1V8AO lies within the last
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # Thor, where VIN is not labelled
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)


class Rail:
    """One rail: a power, or a voltage and a current."""

    def __init__(
        self, name: str, power: tuple[Path, float] | None, pair: tuple[Path, Path] | None = None
    ) -> None:
        self.name, self._power, self._pair = name, power, pair

    def watts(self) -> float | None:
        """Now; None where the chip gives no figure. Slightly below zero is an offset of an idle rail, and is kept."""
        if self._power is not None:
            return number(*self._power)
        assert self._pair is not None
        millivolts, milliamperes = (number(path) for path in self._pair)
        return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6


def find(root: Path = ROOT) -> list[Rail]:
    """All rails with a label."""
    chips = [path.parent for path in sorted((root / "sys/class/hwmon").glob("hwmon*/name"))]
    found = [
        rail for chip in chips if (text(chip / "name") or "").startswith("ina") for rail in _of_hwmon(chip)
    ]
    return [*found, *_of_iio(root)]


def _of_hwmon(chip: Path) -> Iterable[Rail]:
    for label in sorted(chip.glob("in*_label")):
        number_ = label.name[len("in") : -len("_label")]
        name, volts, amperes = text(label), chip / f"in{number_}_input", chip / f"curr{number_}_input"
        # in7 of an INA3221 is the "sum of shunt voltages": no rail, and it has no current
        if name and amperes.exists():
            power = chip / f"power{number_}_input"
            yield Rail(name, (power, 1e6)) if power.exists() else Rail(name, None, (volts, amperes))


def _of_iio(root: Path) -> Iterable[Rail]:
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_*")):
        if name := text(label):
            yield Rail(name, (label.with_name(f"in_power{label.name[-1]}_input"), 1e3))


def total(watts: Mapping[str, float]) -> tuple[str, float] | None:
    """(names joined by "+", W) of the rails that cover the module; None where none do."""
    for names in TOTALS:
        if all(name in watts for name in names):
            return "+".join(names), sum(watts[name] for name in names)
    return None
