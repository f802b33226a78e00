"""Recorded launches of one unchanged call; README.md says how they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeclip.bench.report import Latencies, Pulse

HELD_OUT = {"quiet": 22, "noisy": 48}  # launches before these served to choose


def launches(name: str) -> list[tuple[Latencies, Pulse]]:
    """The launches that nothing was chosen on."""
    with np.load(Path(__file__).parent / f"{name}.npz") as file:
        kept = {key: file[key] for key in file.files}
    ends = [*kept["starts"][1:].tolist(), len(kept["us"])]
    pulse_ends = [*kept["pulse_starts"][1:].tolist(), len(kept["pulse_us"])]
    found = []
    for first, last, p, q in zip(kept["starts"], ends, kept["pulse_starts"], pulse_ends, strict=True):
        at, ms = kept["at_ms"][first:last].tolist(), (kept["us"][first:last] / 1e3).tolist()
        pulse = Pulse((0,), tuple(kept["pulse_at_ms"][p:q].tolist()), tuple(kept["pulse_us"][p:q].tolist()))
        found.append((Latencies(1, (0,), tuple(at), tuple(ms), tuple(at)), pulse))
    return found[HELD_OUT[name] :]


def report_of(some: list[tuple[Latencies, Pulse]], slower: float = 1.0) -> tuple[Latencies, Pulse]:
    """These launches as one scenario's, each call slower by a factor."""
    queries, pulses = zip(*some, strict=True)
    starts = np.cumsum([0, *(len(one.ms) for one in queries[:-1])]).tolist()
    beats = np.cumsum([0, *(len(one.us) for one in pulses[:-1])]).tolist()
    ms = tuple(slower * value for one in queries for value in one.ms)
    at = tuple(value for one in queries for value in one.at_ms)
    return (
        Latencies(1, tuple(starts), at, ms, at),
        Pulse(
            tuple(beats),
            tuple(v for one in pulses for v in one.at_ms),
            tuple(v for one in pulses for v in one.us),
        ),
    )
