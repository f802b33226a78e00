"""What a reader of the report must know of how the device was, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.bench.device.cpu import Cpu
from edgeclip.bench.device.source import Reading
from edgeclip.bench.device.surroundings import Spent

OTHERS, STOLEN, LOADED = 0.05, 0.01, 0.25  # of the machine's CPU time; of its CPUs before the run
FELL = 0.05  # a clock, under the same load
ALIKE = 12  # samples of one load that a clock's fall is judged by: 6 s
SWAPPED = "the machine swapped"


@dataclass(frozen=True)
class Shares:
    """Of the machine's CPU time, 0-1; None where the system does not tell."""

    others: float | None
    stolen: float | None


def shares(before: Spent | None, after: Spent | None) -> Shares:
    """Who had the CPUs between two instants. Ticks are 10 ms: less than 50 of them say nothing."""
    if before is None or after is None or (total := after.total - before.total) < 50:
        return Shares(None, None)
    others = (after.busy - before.busy - (after.ours - before.ours)) / total
    return Shares(min(1.0, max(0.0, others)), (after.stolen - before.stolen) / total)


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0):.0f} %"


def of_shares(found: Shares, load_before: float | None, cpus: int) -> list[str]:
    """Who else was there."""
    said = []
    if (found.others or 0) >= OTHERS:
        said.append(
            f"other programs used {_percent(found.others)} of the machine's CPU time: figures are not of this bundle alone"
        )
    if (found.stolen or 0) >= STOLEN:
        said.append(f"other guests of the host took {_percent(found.stolen)} of the CPU time")
    if load_before is not None and load_before > max(0.5, LOADED * cpus):
        said.append(f"the machine was busy before the run: load {load_before:.1f} on {cpus} CPUs")
    return said


def of_clocks(cpu: Cpu, gpu_fixed: bool | None) -> list[str]:
    """Settings that let clocks follow the load."""
    said = []
    if cpu.governor is not None and cpu.governor != "performance" and not cpu.fixed:
        said.append(f"the CPU's governor is {cpu.governor}: its clock may follow the load")
    if gpu_fixed is False:
        said.append("jetson_clocks is off: the GPU's clock follows the load")
    return said


def of_readings(readings: Sequence[Reading]) -> tuple[list[str], list[str]]:
    """(what slowed the device, what else happened) during the run."""
    slowed: list[str] = []
    others: list[str] = []
    for sentence in dict.fromkeys(key for reading in readings for key in reading.events):
        counts = [reading.events[sentence] for reading in readings if sentence in reading.events]
        if (times := counts[-1] - counts[0]) > 0:
            (others if sentence.startswith(SWAPPED) else slowed).append(sentence.format(times))
    held = Counter(words for reading in readings for words in reading.held)
    slowed += [
        f"{words} held a clock down in {_percent(times / len(readings))} of the samples"
        for words, times in held.items()
    ]
    return slowed, others


def of_fall(readings: Sequence[Reading], cpus: int) -> list[str]:
    """Whether the CPU's clock fell while its load stayed the same: samples are compared only within one number of busy CPUs."""
    both = [r.gauges for r in readings if "cpu clock" in r.gauges and "cpu load" in r.gauges]
    busy = [round(gauges["cpu load"] / 100 * cpus) for gauges in both]
    common = Counter(number for number in busy if number > 0).most_common(1)
    if not common or common[0][1] < ALIKE:
        return []
    clocks: NDArray[np.float64] = np.array(
        [gauges["cpu clock"] for gauges, number in zip(both, busy, strict=True) if number == common[0][0]]
    )
    part = len(clocks) // 4
    first, last = float(np.median(clocks[:part])), float(np.median(clocks[-part:]))
    return (
        [f"the CPU clock fell from {first:.0f} to {last:.0f} MHz under the same load"]
        if last < first * (1 - FELL)
        else []
    )
