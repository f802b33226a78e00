"""Pages of a comparison and of a matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeclip.bench.cells import Matrix
from edgeclip.bench.comparison import Change, Comparison
from edgeclip.bench.render import compared, tables
from edgeclip.bench.render.page import facts, figure, page, paragraph, plots, section, table
from edgeclip.bench.render.plots import BINS, colour, reach
from edgeclip.bench.render.svg import HEIGHT, Axis, Plot, axis, tag, text
from edgeclip.bench.render.words import clean, number
from edgeclip.bench.report import Report, ScenarioResult


def of_comparison(comparison: Comparison, sides: tuple[Report, Report] | None) -> str:
    """The page; `sides`: the reports of A and B, for their histograms."""
    told = [c for c in comparison.changes if c.low is not None or c.verdict != "undecided"]
    shown = [
        c for c in told if np.isfinite(c.change)
    ]  # a change that has no interval would only stretch the axis
    parts = [
        tag("h1", "Latency: B against A"),
        paragraph(compared.verdict(comparison), f"verdict {_mood(comparison)}".strip()),
        facts([("A", comparison.a), ("B", comparison.b), ("compared", f"{comparison.how}, {comparison.created}")]),
        section("Changes", figure("Changes with their intervals of 95 %.", forest(shown), "Left of 0, B has less. Blue: better; orange: worse; grey: the same, or undecided.") if shown else "", table(compared.changes(comparison).filled()), paragraph(compared.READING)),
    ]  # fmt: skip
    if sides:
        both = [(a, b) for a in sides[0].scenarios for b in sides[1].scenarios if a.scenario == b.scenario]
        drawn = [
            figure(f"{a.scenario}.", overlay(a, b), "A: blue; B: orange.")
            for a, b in both
            if a.latencies and a.latencies.ms and b.latencies and b.latencies.ms
        ]
        parts.append(section("Latencies", plots(*drawn) or paragraph("Single latencies were not kept.")))
    return page(f"{comparison.b} against {comparison.a}", "\n".join(parts))


def _mood(comparison: Comparison) -> str:
    """Class of the verdict's colour: green only for what is known to be well."""
    if comparison.failed:
        return "failed"
    doubtful = any(c.undecided for c in comparison.changes)
    gated = any(c.gate for c in comparison.changes)
    worse = any(c.verdict == "worse" or (c.verdict == "undecided" and not gated) for c in comparison.changes)
    return "doubtful" if doubtful or worse else ""


def forest(changes: Sequence[Change]) -> str:
    """Each change with its interval, one below the other, around 0."""
    ends = [100 * value for c in changes for value in (c.low, c.change, c.high, 0.0) if value is not None]
    count = len(changes)
    names = {count - i: clean(compared.label(c))[:26] for i, c in enumerate(changes)}
    y = Axis("", 0.4, count + 0.6, at=tuple(map(float, names)), show=lambda value: names[round(value)])
    x = axis("change, %", ends, room=0.12)
    plot = Plot("Changes with their intervals", x, y, height=60 + 30 * count)
    plot.rule(0, "")
    for i, c in enumerate(changes):
        css = {"worse": "c2", "better": "c1"}.get(c.verdict, "c8")
        if c.low is not None and c.high is not None:
            plot.whisker(count - i, 100 * c.low, 100 * c.high, f"{css} strong")
        plot.dot(
            100 * c.change, count - i, css, f"{compared.label(c)}: {compared.change_text(c)}, {c.verdict}"
        )
    return plot.svg()


def overlay(a: ScenarioResult, b: ScenarioResult) -> str:
    """Both histograms over the same bins."""
    assert a.latencies is not None
    assert b.latencies is not None
    sides = [np.asarray(result.latencies.ms) for result in (a, b) if result.latencies]
    low, high = min(float(ms.min()) for ms in sides), max(reach(ms) for ms in sides)
    if high <= low:
        high = low * 1.01 + 1e-9
    found = [100 * np.histogram(ms, BINS, (low, high))[0] / len(ms) for ms in sides]
    edges = np.linspace(low, high, BINS + 1).tolist()
    top = max(float(share.max()) for share in found)
    plot = Plot(
        f"Histograms of {a.scenario}",
        Axis("ms", low, high),
        axis("% of queries", [0, top * 1.25], zero=True, room=0),
    )
    for share, css, name in zip(found, ("c1 over", "c2 over"), "AB", strict=True):
        plot.bars(edges, share.tolist(), css, lambda i, share=share, name=name: f"{name}: {number(edges[i])} ms, {number(share[i])} %")  # type: ignore[misc]  # fmt: skip
    for result, name in ((a, "A"), (b, "B")):
        plot.rule(result.latency.p50.ms, f"{name} p50 {number(result.latency.p50.ms)}")
    return plot.svg()


def of_matrix(matrix: Matrix) -> str:
    """The page."""
    failed = sum(cell.state == "failed" for cell in matrix.cells)
    said = f"{len(matrix.cells)} cells, {failed} of them failed. Measured {matrix.created} by edgeclip {matrix.edgeclip}."
    drawn = cells_plot(matrix)
    parts = [
        tag("h1", f"Latency of {text(matrix.bundle)}"),
        paragraph(said),
        section("Cells", figure("Throughput and latency.", drawn, "High and left is better. The last number of a name: pictures, or texts, in a call.") if drawn else "", table(compared.cells(matrix))),
        section("On what", facts(tables.device_facts(matrix.device))),
    ]  # fmt: skip
    return page(f"Latency of {matrix.bundle}", "\n".join(parts))


def cells_plot(matrix: Matrix) -> str:
    """Throughput against latency; a line for each engine and variant, a point for each batch."""
    done = [(cell, cell.latency.p50.ms) for cell in matrix.cells if cell.state == "done" and cell.latency]
    if not done:
        return ""
    x = axis("p50 of a call, ms", [ms for _, ms in done], log=True, room=0.15)
    y = axis("samples/s", [cell.throughput_per_s * 1.12 for cell, _ in done], zero=True)
    plot = Plot("Throughput and latency of all cells", x, y, height=HEIGHT + 60)
    groups = list(dict.fromkeys((cell.engine, cell.variant) for cell, _ in done))
    for i, group in enumerate(groups):
        own = [(cell, ms) for cell, ms in done if (cell.engine, cell.variant) == group]
        plot.line([(ms, cell.throughput_per_s) for cell, ms in own], colour(i))
        for cell, ms in own:
            tip = f"{cell.engine}, {cell.variant}, batch {cell.batch}: {number(cell.throughput_per_s)}/s, p50 {number(ms)} ms"
            name = (
                f"{cell.variant.removeprefix('image-')} {cell.batch}" if len(done) <= 12 else str(cell.batch)
            )
            plot.dot(ms, cell.throughput_per_s, colour(i), tip, name, below=True)
    return plot.svg()
