"""The plots of one report: each takes a part of it and gives an SVG element."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeclip.bench.render.stack import stacked
from edgeclip.bench.render.svg import Axis, Plot, axis
from edgeclip.bench.render.words import a_few, number, percent, size
from edgeclip.bench.report import ColdStart, Roof, ScenarioResult, Series, Stages, SweepPoint, VariantPoint

Values = NDArray[np.float64]

BINS = 44
MOST_POINTS = 1500  # of a cloud; more would only cover each other


def reach(ms: Values) -> float:
    """Where a linear axis of latencies ends: a few stalls may not press everything else into one bar."""
    p50, p90, p99 = np.percentile(ms, (50, 90, 99))
    return float(min(ms.max(), max(p99 * 1.03, p90), p50 + 6 * max(p90 - p50, 0.02 * p50)))


def histogram(result: ScenarioResult) -> str:
    """How often which latency came; p50, p90 and p99 as lines."""
    assert result.latencies is not None
    ms = np.asarray(result.latencies.ms)
    most = reach(ms)
    bins = int(
        min(BINS, max(8, 2 * len(ms) ** 0.5))
    )  # few queries would stand alone, each in a bar of its own
    counts, edges = np.histogram(ms[ms <= most], bins, (float(ms.min()), most) if most > ms.min() else None)
    share = 100 * counts / len(ms)
    plot = Plot(
        f"Histogram of {result.scenario} latencies",
        Axis("ms", float(edges[0]), float(edges[-1])),
        axis("% of queries", [0, float(share.max()) * 1.2], zero=True, room=0),
    )
    plot.bars(
        edges.tolist(),
        share.tolist(),
        "c1",
        lambda i: f"{number(edges[i])}–{number(edges[i + 1])} ms: {a_few(int(counts[i]), 'query')}",
    )
    _rules(plot, result)
    return plot.svg()


def beyond(result: ScenarioResult) -> str:
    """How many latencies the histogram leaves out."""
    assert result.latencies is not None
    ms = np.asarray(result.latencies.ms)
    most = reach(ms)
    left = int((ms > most).sum())
    kept = "" if result.latencies.every == 1 else f" One in {result.latencies.every} queries was kept."
    if not left:
        return kept.strip()
    share = percent(left / len(ms))
    return f"Beyond {number(most)} ms: {a_few(left, 'query')} ({share}), up to {number(result.latency.max_ms)} ms.{kept}"


def _rules(plot: Plot, result: ScenarioResult) -> None:
    for name in ("p50", "p90", "p99"):
        value = getattr(result.latency, name).ms
        plot.rule(value, f"{name} {number(value)}")


def cumulative(result: ScenarioResult) -> str:
    """The share of queries that were answered within a time; the axis is logarithmic, so that the tail is seen."""
    assert result.latencies is not None
    ms = np.sort(np.asarray(result.latencies.ms))
    at = np.unique(np.linspace(0, len(ms) - 1, min(len(ms), 400)).astype(int))
    points = [(float(ms[i]), 100 * (i + 1) / len(ms)) for i in at]
    first = float(ms[ms > 0][0]) if ms[-1] > 0 else 1.0
    room = float(ms[-1] * (ms[-1] / first) ** 0.3)  # to the right, for p99's label
    plot = Plot(
        f"Cumulative distribution of {result.scenario} latencies",
        axis("ms", [*ms.tolist(), room], log=True),
        Axis("% of queries within", 0, 100),
    )
    plot.line(points, "c1")
    for name in ("p50", "p90", "p99"):
        value = getattr(result.latency, name).ms
        plot.dot(
            value,
            float(name[1:]),
            "c2",
            f"{name}: {number(value)} ms",
            f"{name} {number(value)} ms",
            below=True,
        )
    return plot.svg()


def timeline(result: ScenarioResult) -> str:
    """Each query over the time of the run, the median of its neighbours, and the machine's pulse beside them."""
    assert result.latencies is not None
    kept = result.latencies
    at, ms = np.asarray(kept.at_ms) / 1000, np.asarray(kept.ms)
    most = reach(ms) * 1.05
    plot = Plot(
        f"Latency of {result.scenario} over time",
        Axis("seconds of measuring", float(at.min()), max(float(at.max()), float(at.min()) + 1e-3)),
        axis("ms", [0, most], zero=True, room=0.02),
    )
    for start in kept.starts[1:]:
        if start < len(at):
            plot.rule(float(at[start]), "", "launch")
    chosen = slice(None, None, max(1, len(ms) // MOST_POINTS))
    plot.cloud(
        [(x, y) for x, y in zip(at[chosen].tolist(), ms[chosen].tolist(), strict=True) if y <= most], "c1"
    )
    plot.cloud([(x, plot.y.high) for x in at[ms > most][:MOST_POINTS].tolist()], "c2")
    for part in _launches(kept.starts, len(ms)):
        plot.line(_medians(at[part], ms[part]), "c4 strong")
    if result.pulse is not None and len(result.pulse.us) > 1:
        us = np.asarray(result.pulse.us)
        scaled = us / np.median(us) * result.latency.p50.ms
        beats = np.asarray(result.pulse.at_ms) / 1000
        for part in _launches(result.pulse.starts, len(us)):
            plot.line(_medians(beats[part], scaled[part]), "c3 strong dashed")
    return plot.svg()


def _launches(starts: Sequence[int], count: int) -> list[slice]:
    """The positions of each launch."""
    inside = [start for start in starts if 0 < start < count]
    return [slice(a, b) for a, b in zip([0, *inside], [*inside, count], strict=True)]


def _medians(at: Values, values: Values) -> list[tuple[float, float]]:
    """At most 24 points, each the median of at least six values in a row where there are so many."""
    groups = int(min(24, max(2, len(values) // 6)))
    parts = [part for part in np.array_split(np.arange(len(values)), groups) if len(part)]
    return [(float(np.median(at[part])), float(np.median(values[part]))) for part in parts]


def stage_bar(found: Stages) -> str:
    """Mean share of each stage."""
    segments = [(s.name, s.share, colour(i)) for i, s in enumerate(found.stages)]
    return stacked("Share of each stage", [("one call, by means", segments)], percent)


def colour(index: int) -> str:
    """Class of the colour of a part; the eighth and later are grey."""
    return f"c{index + 1}" if index < 7 else "c8"


def curve(points: Sequence[SweepPoint], unit: str) -> str:
    """Throughput against latency; each point a batch size."""
    done = [point for point in points if not point.failed]
    plot = Plot(
        "Throughput and latency over batch sizes",
        axis("p50 of a call, ms", [p.latency.p50.ms for p in done], log=True, room=0.1),
        axis(f"{unit}/s", [p.throughput_per_s * 1.12 for p in done], zero=True),
    )
    plot.line([(p.latency.p50.ms, p.throughput_per_s) for p in done], "c1")
    for p in done:
        if p.latency.p50.low is not None and p.latency.p50.high is not None:
            plot.whisker(p.throughput_per_s, p.latency.p50.low, p.latency.p50.high, "c1 strong")
        tip = f"batch {p.value}: {number(p.throughput_per_s)} {unit}/s, p50 {number(p.latency.p50.ms)} ms"
        plot.dot(p.latency.p50.ms, p.throughput_per_s, "c1", tip, f"{p.value}", below=True)
    return plot.svg()


def scaling(points: Sequence[SweepPoint], unit: str) -> str:
    """Throughput over threads, and what it were if each thread brought as much as the first."""
    done = [point for point in points if not point.failed]
    values = [float(p.value) for p in done]
    x = axis("threads", values, zero=True)
    plot = Plot(
        "Throughput over threads",
        Axis(x.label, x.low, x.high, at=tuple(values), show=lambda value: f"{value:.0f}"),
        axis(f"{unit}/s", [p.throughput_per_s * 1.15 for p in done], zero=True),
    )
    one = max(done[0].throughput_per_s / max(done[0].value, 1), 1e-9)
    end = min(values[-1], plot.y.high / one)
    plot.line([(0, 0), (end, one * end)], "c8 dashed")
    plot.line([(float(p.value), p.throughput_per_s) for p in done], "c1")
    for p in done:
        tip = f"{a_few(p.value, 'thread')}: {number(p.throughput_per_s)} {unit}/s"
        plot.dot(p.value, p.throughput_per_s, "c1", tip, number(p.throughput_per_s), below=True)
    return plot.svg()


START = {"process": "c8", "import": "c1", "load": "c2", "first result": "c3"}


def cold_bars(starts: Sequence[ColdStart]) -> str:
    """What a start consists of."""
    rows = []
    for c in starts:
        rest = c.total_ms - c.import_ms - c.load_ms - c.first_ms
        lengths = zip(START.items(), (rest, c.import_ms, c.load_ms, c.first_ms), strict=True)
        rows.append((f"{c.kind}: {number(c.total_ms)} ms", [(name, ms, css) for (name, css), ms in lengths]))
    return stacked("Cold start", rows, lambda ms: f"{number(ms)} ms")


def roof_plot(roofs: Sequence[Roof]) -> str:
    """The classic one: what the machine can do over operations for each byte of weights, and where the towers are."""
    intensity = [r.operations / max(r.weight_bytes, 1) for r in roofs]
    knees = [r.peak_gflops / r.copy_gb_per_s for r in roofs if r.copy_gb_per_s]
    x = axis(
        "operations for each byte of weights",
        [*intensity, *knees, *(k * 4 for k in knees)],
        log=True,
        room=0.12,
    )
    rates = [r.gflops for r in roofs]
    y = axis(
        "GFLOP/s", [*rates, *(r.peak_gflops * 1.6 for r in roofs), *(rate * 0.5 for rate in rates)], log=True
    )
    plot = Plot("Roofline", x, y)
    for peak, copy, precision in sorted({(r.peak_gflops, r.copy_gb_per_s, r.precision) for r in roofs}):
        low = max(x.low, y.low / copy) if copy else x.low
        knee = min(max(peak / copy, low), x.high) if copy else x.low
        plot.line([(low, min(low * copy, peak) if copy else peak), (knee, peak), (x.high, peak)], "c8 strong")
        plot.label(plot.x(x.high) - 150, plot.y(peak) - 10, f"{precision}: {number(peak)} GFLOP/s")
    for i, (r, at) in enumerate(zip(roofs, intensity, strict=True)):
        tip = f"{r.tower} {r.precision}, batch {r.batch}: {number(r.gflops)} GFLOP/s, {percent(r.share_of_peak)} of peak"
        plot.dot(at, r.gflops, colour(i), tip, f"{r.tower} {percent(r.share_of_peak)}")
    return plot.svg()


def operator_names(roofs: Sequence[Roof]) -> list[str]:
    """The operators that take most of the towers' time, most first; a plot has colours for six."""
    names = {name for roof in roofs for name, share in roof.by_operator.items() if share >= 0.01}
    return sorted(names, key=lambda name: -sum(roof.by_operator.get(name, 0.0) for roof in roofs))[:6]


def operators(roofs: Sequence[Roof]) -> str:
    """Share of each kind of operator in a tower's time; the small ones together."""
    names, rows = operator_names(roofs), []
    for r in roofs:
        segments = [(name, r.by_operator.get(name, 0.0), colour(i)) for i, name in enumerate(names)]
        rest = max(0.0, 1 - sum(length for _, length, _ in segments))
        if r.by_operator:
            rows.append((f"{r.tower}, {r.precision}, batch {r.batch}", [*segments, ("others", rest, "c8")]))
    return stacked("Operators", rows, percent) if rows else ""


def readings(series: Series) -> str:
    """One quantity over the run."""
    plot = Plot(
        f"{series.name} over time",
        Axis("seconds of the run", min(series.at_s), max(max(series.at_s), min(series.at_s) + 1e-3)),
        Axis("%", 0, 100) if series.unit == "%" else axis(series.unit, series.values, room=0.15),
        height=170,
    )
    step = max(1, len(series.values) // 600)
    points = list(zip(series.at_s[::step], series.values[::step], strict=True))
    plot.line(points, "c1")
    return plot.svg()


def scatter(variants: Sequence[VariantPoint]) -> str:
    """Fidelity against speed: left and low is better. None for a single variant: there is nothing to choose."""
    known = [
        (v, v.latency.p50.ms, v.relative_distance)
        for v in variants
        if v.latency and v.relative_distance is not None
    ]
    if len(known) < 2:
        return ""
    distances = [distance for *_, distance in known if distance > 0] or [1e-6]
    x = axis("p50 of the image tower, ms", [ms for _, ms, _ in known], zero=True, room=0.25)
    plot = Plot(
        "Fidelity against speed of the variants",
        x,
        axis("relative distance to the source", distances, log=True, room=0.12),
    )
    for v, ms, distance in known:
        tip = f"{v.id}: {number(ms)} ms, distance {number(distance)}, {size(v.size_bytes)}"
        plot.dot(
            ms, max(distance, plot.y.low), colour(_precision(v.precision)), tip, v.id.removeprefix("image-")
        )
    return plot.svg()


def _precision(name: str) -> int:
    known = ("fp32", "fp16", "int8", "bf16", "int4", "fp8")
    return known.index(name) if name in known else 7
