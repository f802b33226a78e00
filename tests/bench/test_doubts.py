"""What a report's reader is told to doubt."""

from __future__ import annotations

from dataclasses import replace

from edgeclip.bench.doubts import doubts
from edgeclip.bench.report import Report
from tests.bench.reports import make_report


def clean() -> Report:
    """A report that nothing speaks against."""
    report = make_report()
    return replace(
        report,
        subject=replace(report.subject, fell_back=""),
        inputs=replace(report.inputs, kind="pictures"),
        scenarios=tuple(
            replace(one, enough=True, warmup=replace(one.warmup, steady=True)) for one in report.scenarios
        ),
        harness_us=1.0,
        not_measured={},
    )


def test_nothing_to_doubt() -> None:
    assert doubts(clean()) == ()


def test_each_doubt_is_told_once() -> None:
    report = clean()
    first, *others = report.scenarios
    p50 = first.latency.p50.ms
    cases = {
        "not the engine that comes first: tensorrt: no GPU": replace(
            report, subject=replace(report.subject, fell_back="tensorrt: no GPU")
        ),
        "pictures were made by edgeclip": replace(report, inputs=replace(report.inputs, kind="generated")),
        f"{first.scenario}: ended after {first.queries} queries": replace(
            report, scenarios=(replace(first, enough=False), *others)
        ),
        f"{first.scenario}: latencies had not settled": replace(
            report, scenarios=(replace(first, warmup=replace(first.warmup, steady=False)), *others)
        ),
        f"{first.scenario}: measuring adds 3.0% to a call": replace(
            report, scenarios=(first,), harness_us=30 * p50
        ),
        "roofline: not measured: no counts": replace(report, not_measured={"roofline": "no counts"}),
    }
    for sentence, doubtful in cases.items():
        (said,) = doubts(doubtful)
        assert sentence in said
    assert doubts(replace(report, scenarios=(first,), harness_us=19 * p50)) == ()  # 1.9 %


def test_parts_that_nobody_asked_for_are_not_missed() -> None:
    report = clean()
    asked = replace(report.settings, parts=("stages",))
    assert doubts(replace(report, settings=asked, not_measured={"cold": "not asked for"})) == ()
