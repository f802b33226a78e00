"""Two reports side by side: is B slower than A, or was the machine, or was it chance?

A verdict is *worse* or *better* when the interval of the change excludes none; *same* when the interval excludes none no more than it reaches
MATTERS; *undecided* otherwise, with the smallest change that these runs could have told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from operator import attrgetter
from typing import Any

import numpy as np

from edgeclip.bench.comparison import Change, Comparison, Verdict
from edgeclip.bench.difference import Difference, difference
from edgeclip.bench.gate import METRICS, Gate, apply_gates
from edgeclip.bench.report import ColdStart, Quantile, Report, ScenarioResult
from edgeclip.errors import InputError

MATTERS = 0.05  # an interval within +-5 % says that nothing changed that anybody would notice
PERCENTS: Mapping[str, float | None] = {"p50": 50, "p90": 90, "p99": 99, "mean": None}
# figures without an interval: how far two runs of the same lie apart (resident memory: where pages happen to be; energy: temperature)
EXACT_TO = {"size": 0.001, "rss": 0.03, "energy": 0.05}
RATES_ALIKE = 0.05  # of two servers: latencies at different rates of arrival are no comparison
FEW_STARTS = 4  # cold starts of each; the ranges of 3 and 3 are apart by chance once in ten times
Row = tuple[Change, tuple[float, float]]  # and the interval of B's own figure

# what must agree, by the word of --allow that lifts it
MUST_AGREE: Mapping[str, Mapping[str, Callable[[Report], Any]]] = {
    "device": {
        "CPU": lambda r: r.device.cpu,
        "cores": lambda r: r.device.cores,
        "GPU": lambda r: ", ".join(gpu.name for gpu in r.device.gpus) or "none",
        "power limit of the GPU, W": lambda r: ", ".join(str(gpu.power_limit_w) for gpu in r.device.gpus) or "none",
        "memory, GB": lambda r: round(r.device.memory_bytes / 1e9),  # the kernel's own part differs by version
    },
    "mode": {
        "governor": lambda r: r.device.governor,
        "power mode": lambda r: r.device.power_mode,
        "virtual machine": lambda r: r.device.virtual,
        "threads": lambda r: r.subject.threads,
    },
    "settings": {
        name: attrgetter(f"settings.{name}")
        for name in (
            "task", "decode", "multi_stream_samples", "offline_batch", "server_batch", "server_rate_per_s", "server_bound_ms",
            "labels", "index_size", "seed",
        )
    },
    "inputs": {"inputs": lambda r: f"{r.inputs.count} {r.inputs.kind}, sha256 {r.inputs.sha256[:12]}"},
}  # fmt: skip
# what may differ, since it is what is compared
NAMED: Mapping[str, Callable[[Report], Any]] = {
    "bundle": lambda r: f"{r.subject.name} {r.subject.digest[:8]}",
    "variants": lambda r: ", ".join(used.variant for used in r.subject.towers),
    "engine": lambda r: ", ".join(dict.fromkeys(used.provider for used in r.subject.towers)),
    "edgeclip": lambda r: r.edgeclip,
    "python": lambda r: r.device.python,
    "system": lambda r: r.device.system,
    "driver": lambda r: ", ".join(gpu.driver for gpu in r.device.gpus),
    "preset": lambda r: r.settings.preset,
}


def compare(
    a: Report, b: Report, gates: Sequence[Gate] = (), *, allow: Sequence[str] = (), strict: bool = False
) -> Comparison:
    """B against A.

    Args:
        allow: of "device", "mode", "settings", "inputs", what may differ.
        strict: a gate that cannot be decided fails.
    Raises:
        InputError: they differ in what is not allowed, share no scenario, or a gate names what they do not share.
    """
    allowed = refuse_others(a, b, allow)
    mine = {one.scenario: one for one in a.scenarios}
    pairs = [(mine[one.scenario], one) for one in b.scenarios if one.scenario in mine]
    if not pairs:
        have = [", ".join(one.scenario for one in r.scenarios) or "none" for r in (a, b)]
        raise InputError(
            f"compare: no scenario in both reports: {have[0]} against {have[1]}. Measure the same."
        )
    rows = [row for pair in pairs for row in scenario_rows(*pair)] + _own_rows(a, b)
    changes = apply_gates([change for change, _ in rows], [ends for _, ends in rows], gates, strict=strict)
    names = called(a, b)
    return Comparison(
        created=now(),
        how="reports",
        a=names[0],
        b=names[1],
        changes=changes,
        machine=machine(pairs),
        failed=any(change.failed for change in changes),
        notes=(*allowed, *_notes(a, b, names)),
    )


def refuse_others(a: Report, b: Report, allow: Sequence[str] = ()) -> list[str]:
    """A line for each thing that differs though it should not, and is allowed to.

    Raises:
        InputError: it is not allowed; or `allow` holds another word.
    """
    if wrong := [word for word in allow if word not in MUST_AGREE]:
        raise InputError(f"allow {wrong[0]!r}: expected one of {', '.join(MUST_AGREE)}.")
    notes = []
    for word, fields in MUST_AGREE.items():
        for name, read in fields.items():
            one, other = read(a), read(b)
            if one == other:
                continue
            if word not in allow:
                raise InputError(
                    f"compare: {name} differs: {_shown(one)} in A, {_shown(other)} in B, so B's figures do not tell what changed. "
                    f"Measure both alike, or pass --allow {word}."
                )
            notes.append(f"allowed to differ: {name}, {_shown(one)} in A, {_shown(other)} in B")
    return notes


def scenario_rows(a: ScenarioResult, b: ScenarioResult) -> list[Row]:
    """All figures of one scenario."""
    name, rows = a.scenario, list[Row]()
    apart = abs((b.offered_per_s or 1) / (a.offered_per_s or 1) - 1) > RATES_ALIKE
    means: Difference | None = None
    for metric, percent in PERCENTS.items():
        found = None
        if a.latencies and b.latencies and not apart:
            found = difference((a.latencies, a.pulse), (b.latencies, b.pulse), percent)
        note = (
            "queries arrived at other rates"
            if apart
            else ""
            if a.latencies and b.latencies
            else "no single latencies"
        )
        one, other = (
            (getattr(r.latency, metric) if percent else Quantile(r.latency.mean_ms)) for r in (a, b)
        )
        means = found if percent is None else means
        rows.append(timed_row(name, metric, one.ms, other, found, note or "too few queries"))
    rates = a.throughput_per_s, b.throughput_per_s
    faster = Difference(-means.log, means.half, means.corrected) if means and name != "server" else None
    rows.append(timed_row(name, "throughput", rates[0], Quantile(rates[1]), faster, "no interval"))
    if a.energy_j and b.energy_j:
        rows.append(exact_row(name, "energy", a.energy_j, b.energy_j))
    return rows


def timed_row(
    scenario: str, metric: str, a: float, b: Quantile, found: Difference | None, without: str
) -> Row:
    """A figure with an interval.

    Args:
        b: B's figure, with its own interval if it has one.
        found: None: there is no interval, because of `without`.
    """
    ends = (b.ms if b.low is None else b.low, b.ms if b.high is None else b.high)
    unit = METRICS[metric][0]
    if found is None:
        return Change(
            scenario, metric, unit, a, b.ms, b.ms / a - 1, None, None, "undecided", None, note=without
        ), ends
    low, high = found.ends
    return (
        Change(
            scenario, metric, unit, a, b.ms, found.change, low, high, verdict(metric, low, high), found.resolution,
            note="at an equal pulse of the machine" if found.corrected else "",
        ),
        ends,
    )  # fmt: skip


def exact_row(scenario: str, metric: str, a: float, b: float) -> Row:
    """A figure without an interval: two runs of the same lie within EXACT_TO."""
    change, far = b / a - 1, EXACT_TO[metric]
    told: Verdict = "same" if abs(change) <= far else verdict(metric, change, change)
    return Change(scenario, metric, METRICS[metric][0], a, b, change, None, None, told, far), (b, b)


def verdict(metric: str, low: float, high: float) -> Verdict:
    """What an interval of a change says."""
    if low > 0 or high < 0:
        return "worse" if (low > 0) != (metric == "throughput") else "better"
    return "same" if max(-low, high) <= MATTERS else "undecided"


def machine(pairs: Sequence[tuple[ScenarioResult, ScenarioResult]]) -> float | None:
    """How much slower the machine was under B, over all scenarios whose pulse was felt in both."""
    felt = [[np.log(one.pulse.us) for one in pair if one.pulse] for pair in pairs]
    logs = [
        (np.concatenate([f[k] for f in felt if len(f) == 2]))
        for k in range(2)
        if any(len(f) == 2 for f in felt)
    ]
    return math.expm1(float(logs[1].mean() - logs[0].mean())) if logs else None


def called(a: Report, b: Report) -> tuple[str, str]:
    """What each is called: its name, and as much more as tells them apart."""
    parts: list[Callable[[Report], str]] = [
        lambda r: r.subject.name,
        lambda r: ", ".join(dict.fromkeys(used.precision for used in r.subject.towers)),
        lambda r: ", ".join(dict.fromkeys(used.engine for used in r.subject.towers)),
        lambda r: r.device.name,
        lambda r: r.created,
    ]
    more = [part for part in parts[1:] if part(a) != part(b)][:1]
    one, other = (" · ".join(part(r) for part in (parts[0], *more)) for r in (a, b))
    return (one, other) if one != other else (f"{one} (A)", f"{other} (B)")


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def _own_rows(a: Report, b: Report) -> list[Row]:
    """What belongs to no scenario."""
    rows = []
    kinds = {one.kind: one for one in a.cold}
    rows += [_cold_row(kinds[one.kind], one) for one in b.cold if one.kind in kinds]
    if a.memory and b.memory and a.memory.rss_bytes and b.memory.rss_bytes:
        rows.append(exact_row("", "rss", a.memory.rss_bytes / 1e6, b.memory.rss_bytes / 1e6))
    rows.append(exact_row("", "size", a.subject.size_bytes / 1e6, b.subject.size_bytes / 1e6))
    return rows


def _cold_row(a: ColdStart, b: ColdStart) -> Row:
    """Worse or better when the ranges of all starts are apart."""
    runs, change = min(a.runs, b.runs), b.total_ms / a.total_ms - 1
    row = Change(
        b.kind, "cold", "ms", a.total_ms, b.total_ms, change, None, None, "undecided", None, note=f"range of {runs} starts"
    )  # fmt: skip
    if runs < FEW_STARTS:
        row = replace(row, note=f"{row.note}, {FEW_STARTS} would tell")
    else:
        low, high = b.low_ms / a.high_ms - 1, b.high_ms / a.low_ms - 1
        row = replace(
            row, low=low, high=high, verdict=verdict("cold", low, high), resolution=(high - low) / 2
        )
    return row, (b.low_ms, b.high_ms)


def _notes(a: Report, b: Report, names: tuple[str, str]) -> list[str]:
    ran = [{one.scenario for one in report.scenarios} for report in (a, b)]
    notes = [
        f"{one.scenario}: measured in {'A' if one in a.scenarios else 'B'} only, not compared and under no gate"
        for one in (*a.scenarios, *b.scenarios)
        if one.scenario not in ran[0] & ran[1]
    ]
    notes += [
        f"{what}: {_shown(read(a))} in A, {_shown(read(b))} in B"
        for what, read in NAMED.items()
        if read(a) != read(b)
    ]
    packages = sorted(a.device.packages.items() ^ b.device.packages.items())
    for package in dict.fromkeys(name for name, _ in packages):
        versions = (_shown(r.device.packages.get(package)) for r in (a, b))
        notes.append(f"{package}: {' in A, '.join(versions)} in B")
    for name, report in zip(names, (a, b), strict=True):
        if report.state.throttled:
            notes.append(f"{name}: measured while the device throttled")
    return notes


def _shown(value: Any) -> str:
    return "unknown" if value is None else str(value) or "none"
