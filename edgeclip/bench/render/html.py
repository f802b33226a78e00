"""A report as one page, in the order in which an engineer asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from edgeclip.bench.render import plots, tables
from edgeclip.bench.render.page import bullets, card, facts, figure, legend, page, paragraph, section, table
from edgeclip.bench.render.page import plots as side_by_side
from edgeclip.bench.render.svg import tag, text
from edgeclip.bench.render.words import a_few, fixed, number, percent, span
from edgeclip.bench.report import Quantile, Report, ScenarioResult
from edgeclip.bench.settings import Settings

COLD = (
    "From starting a process to its first result. Empty caches: the bundle's files come from disk. "
    "Label pack: the labels' vectors are read from a file, so no text tower is opened."
)


def of_report(report: Report) -> str:
    """The whole page."""
    name = report.subject.name
    parts = [
        tag("header", tag("h1", f"Latency of {text(name)}") + paragraph(tables.in_brief(report)) + _doubts(report)),
        _figures(report),
        section("What ran, and on what", facts(tables.subject(report))),
        *(_scenario(result) for result in report.scenarios),
        _stages(report),
        _sweeps(report),
        _cold(report),
        section("Memory and size", facts(tables.memory(report))),
        _roofline(report),
        _state(report),
        _variants(report),
        section("Settings", facts(_settings(report.settings))),
        section("Not measured", facts(report.not_measured.items()) if report.not_measured else paragraph("Nothing is missing.")),
        _footer(report),
    ]  # fmt: skip
    return page(f"Latency of {name} on {report.device.name}", "\n".join(parts))


def _doubts(report: Report) -> str:
    return bullets(tables.doubts(report), "doubts bad" if report.state.throttled else "doubts")


def _figures(report: Report) -> str:
    unit = tables.samples(report)
    cards = "".join(_card(result, unit) for result in report.scenarios)
    return section(
        "Results",
        tag("div", cards, class_="cards"),
        table(tables.scenarios(report).without("result").filled()),
        paragraph("In brackets: intervals of 95 %. At most: the bound that holds with 99 % confidence, by MLPerf's early stopping. A launch: a fresh process."),
    )  # fmt: skip


def _card(result: ScenarioResult, unit: str) -> str:
    metric = tables.METRICS[result.scenario]
    rate = f"{number(result.throughput_per_s)} {unit}/s"
    each = f" of {result.samples_per_query} {unit}" if result.samples_per_query > 1 else ""
    runs = f"{a_few(result.queries, 'query')}{each} in {number(result.seconds)} s, {a_few(result.launches, 'launch')}"
    if metric == "throughput":
        title, lines = rate, [f"p50 of a call {fixed(result.latency.p50.ms)} ms"]
    else:
        found: Quantile = getattr(result.latency, metric)
        title, lines = (
            f"{metric} {fixed(found.ms)} ms",
            [f"95 % sure: {bounds}" if (bounds := span(found)) else "too few queries for an interval", rate],
        )
    lines.append(tables.bound(result))
    if result.energy_j is not None:
        lines.append(f"{number(result.energy_j)} J a {unit.removesuffix('s')}")
    if result.mean_batch is not None:
        lines.append(f"{number(result.mean_batch)} queries share a call")
    return card(result.scenario, title, *lines, runs)


def _scenario(result: ScenarioResult) -> str:
    title = f"Latencies: {result.scenario}"
    if result.latencies is None or not result.latencies.ms:
        return section(title, paragraph("Single latencies were not kept."))
    pulse = (
        " Dashed: the machine's own pulse, scaled; where it rises too, the machine was slower, not the bundle."
        if result.pulse
        else ""
    )
    return section(
        title,
        side_by_side(
            figure("Histogram.", plots.histogram(result), f"How long queries took. {plots.beyond(result)}"),
            figure("Cumulative.", plots.cumulative(result), "Queries that were answered within a time; times are on a logarithmic axis."),
            figure("Over time.", plots.timeline(result), f"Line: running median; dotted: a new process; at the top edge: beyond the axis.{pulse}"),
        ),
    )  # fmt: skip


def _missing(report: Report, key: str) -> str:
    said = tables.missing(report, key)
    return paragraph(f"{said[0].upper()}{said[1:]}.")


def _stages(report: Report) -> str:
    if report.stages is None:
        return section("Stages of a call", _missing(report, "stages"))
    colours = [plots.colour(i) for i in range(len(report.stages.stages))]
    shown = tables.stages(report)
    note = "Timed inside the call; at each moment the part that began last counts. The longest is what to make faster first."
    return section(
        "Stages of a call", figure("", plots.stage_bar(report.stages), note), table(shown, colours)
    )


def _sweeps(report: Report) -> str:
    unit, parts = tables.samples(report), []
    for name, points, draw in (
        ("batch", report.batches, plots.curve),
        ("threads", report.threads, plots.scaling),
    ):
        title = "Throughput and latency over batch sizes." if name == "batch" else "Throughput over threads."
        note = (
            "Each point: one batch size. Up: more in a second; right: a longer wait for each call."
            if name == "batch"
            else "Dashed: if each thread brought as much as the first."
        )
        if any(not point.failed for point in points):
            drawn = figure(title, draw(points, unit), note)
        else:
            drawn = tag("p", tag("b", text(title))) + (
                "" if points else _missing(report, "batches" if name == "batch" else name)
            )
        parts.append(tag("div", drawn + table(tables.sweep(report, points, name))))
    return section("Batch sizes and threads", side_by_side(*parts))


def _cold(report: Report) -> str:
    if not report.cold:
        return section("Cold start", _missing(report, "cold"))
    notes = bullets(tables.absent(report, "cold"))
    return section(
        "Cold start",
        figure("", plots.cold_bars(report.cold), COLD, legend(plots.START.items())),
        table(tables.cold(report)),
        notes,
    )


def _roofline(report: Report) -> str:
    if not report.roofline:
        return section("Roofline", _missing(report, "roofline"))
    shares = "; ".join(
        f"{r.tower}, batch {r.batch}: {percent(r.share_of_peak)} of the peak" for r in report.roofline
    )
    names = [(name, plots.colour(i)) for i, name in enumerate(plots.operator_names(report.roofline))]
    return section(
        "Roofline",
        side_by_side(
            figure("Roofline.", plots.roof_plot(report.roofline), f"Line: the fastest product of matrices, and copy, measured on this machine. What lies below it is not used. {shares}."),
            figure("Operators.", plots.operators(report.roofline), "Share of the tower's time.", legend([*names, ("others", "c8")])),
        ),
        table(tables.roofline(report)),
        paragraph("Reading weights: what one copy of all weights would take of a call. Where it is near 100 %, smaller weights help more than fewer operations."),
        bullets(tables.absent(report, "roofline")),
    )  # fmt: skip


def _state(report: Report) -> str:
    series = [s for s in report.state.series if s.values]
    drawn = [figure(f"{s.name}, {s.unit}.", plots.readings(s), f"From {number(min(s.values))} to {number(max(s.values))}.") for s in series]  # fmt: skip
    absent = tables.absent(report, "state", "state.throttled", "state.power")
    return section(
        "The device during the run", facts(tables.state(report)), side_by_side(*drawn), bullets(absent)
    )


def _variants(report: Report) -> str:
    if not report.variants:
        return section("Fidelity against speed", _missing(report, "variants"))
    note = "Left and low is better. Only variants that run here and state a distance."
    drawn = figure("Variants of the image tower.", plots.scatter(report.variants), note)
    return section(
        "Fidelity against speed",
        drawn,
        table(tables.variants(report)),
        paragraph(
            "Distance: error of the vectors over what separates two pictures, as the bundle states it."
        ),
        bullets(tables.absent(report, "variants")),
    )


def _settings(settings: Settings) -> list[tuple[str, str]]:
    return [(f.name, _said(getattr(settings, f.name))) for f in fields(settings)]


def _said(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none given"
    return str(value)


def _footer(report: Report) -> str:
    ids = f"model_id {report.subject.model_id[:16]}, bundle {report.subject.digest[:16]}, inputs {report.inputs.sha256[:16]}"
    cost = (
        f"Measuring adds {number(report.harness_us)} µs to a query. The run took {number(report.seconds)} s."
    )
    made = f"Measured {report.created} by edgeclip {report.edgeclip}. {cost} {ids}. All figures are in the JSON file that `edgeclip bench -o` wrote."
    return tag("footer", paragraph(made))
