"""What a reader must know before trusting a report's figures, in plain words."""

from __future__ import annotations

from edgeclip.bench.report import Report, ScenarioResult
from edgeclip.bench.settings import PARTS

HARNESS = 0.02  # of a call: what measuring it may add


def doubts(report: Report) -> tuple[str, ...]:
    """Sentences, the gravest first; () for a run that nothing speaks against.

    What is said of the device (`State.flags`: throttling, other programs, governor) is not repeated.
    """
    return tuple(
        sentence for group in (_subject(report), _evidence(report), _missing(report)) for sentence in group
    )


def _subject(report: Report) -> list[str]:
    found = []
    if report.subject.fell_back:
        found.append(f"not the engine that comes first: {report.subject.fell_back}")
    if report.inputs.kind == "generated":
        found.append(
            "the pictures were made by edgeclip: pass --images with your own, since decoding is part of the time"
        )
    return found


def _evidence(report: Report) -> list[str]:
    found = [_short(one) for one in report.scenarios if not one.enough]
    for one in report.scenarios:
        share = report.harness_us / (1e3 * one.latency.p50.ms) if one.latency.p50.ms else 0.0
        if share > HARNESS:
            found.append(
                f"{one.scenario}: measuring adds {share:.1%} to a call of {one.latency.p50.ms:.3g} ms"
            )
    if any(not one.warmup.steady for one in report.scenarios):
        names = ", ".join(one.scenario for one in report.scenarios if not one.warmup.steady)
        found.append(f"{names}: latencies had not settled when the warm-up ended")
    return found


def _short(one: ScenarioResult) -> str:
    return (
        f"{one.scenario}: ended after {one.queries} queries and {one.seconds:.0f} s, short of what was asked for; "
        "raise --max-seconds"
    )


def _missing(report: Report) -> list[str]:
    return [
        f"{part}: not measured: {report.not_measured[part]}"
        for part in PARTS
        if part in report.settings.parts and part in report.not_measured
    ]
