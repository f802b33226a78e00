"""Two reports, or two bundles run in turn, side by side: the verdicts as frozen dataclasses. Made by compare.py and live.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FORMAT = "edgeclip.bench.comparison"
FORMAT_VERSION = (1, 0)

Verdict = Literal["better", "same", "worse", "undecided"]


@dataclass(frozen=True)
class Change:
    """One figure of B against A."""

    scenario: str  # "single-stream", ...; of a cold start its kind; "" for what belongs to none (memory, size on disk)
    metric: str  # p50, p90, p99, mean, throughput, cold, rss, size, energy
    unit: str  # ms, /s, MB, J
    a: float
    b: float
    change: float  # b / a - 1, less what the machine itself changed where `note` says so
    low: float | None  # interval of 95 % of the change; None: an exact figure, or one without an interval
    high: float | None
    verdict: Verdict
    resolution: float | None  # the smallest change that these runs could have told from none
    gate: str = ""  # e.g. "p99>+5%"
    failed: bool = False  # the gate's limit is passed, and not by chance
    undecided: bool = False  # these runs cannot tell whether the gate holds; with --strict it has failed, too
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """B against A."""

    created: str  # UTC, ISO 8601
    how: Literal["reports", "live"]
    a: str  # how each is called on a page
    b: str
    changes: tuple[Change, ...]
    machine: (
        float | None
    )  # how much slower the machine itself was under B, by its pulse: 0.1 is 10 %; None: not known
    failed: bool  # any gate
    notes: tuple[str, ...] = ()
