"""Reports as people read them. What a page says is read back from it, with parsers that we did not write."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.bench.cells import Matrix
from edgeclip.bench.render import to_html, to_markdown, to_text
from edgeclip.bench.render import words as numbers
from edgeclip.bench.render.svg import Axis, Plot, axis, log_ticks, ticks
from edgeclip.bench.report import NOT_ASKED, Quantile, Series, State, TowerUsed
from tests.bench.reports import (
    make_bare_report,
    make_change,
    make_comparison,
    make_latencies,
    make_matrix,
    make_report,
    make_roof,
    make_scenario,
    make_server,
    make_spread,
    make_state,
    make_sweep,
)

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = '<script src="//evil">&"\'|`*[x](y)\x1b[31m\n# \udcff</title></style>'
FEW = (make_scenario(count=60), make_server())


class Page(HTMLParser):
    """What a browser would take from a page: texts, elements, and whether each element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def rows(self, first: str) -> list[list[str]]:
        """Rows of tables that begin with this cell."""
        return [row for row in self.cells if row and row[0] == first]


@cache
def html_of(name: str) -> str:
    both = (make_report(scenarios=FEW), make_report(scenarios=(make_scenario(p50=11, count=70, seed=4),)))
    made: dict[str, Any] = {
        "report": make_report(),
        "gpu": make_report(gpu=True, throttled=True, scenarios=FEW),
        "bare": make_bare_report(),
        "comparison": make_comparison(),
        "matrix": make_matrix(),
    }
    return to_html(make_comparison(), both) if name == "overlaid" else to_html(made[name])


PAGES = ("report", "gpu", "bare", "comparison", "overlaid", "matrix")


def drawings(html: str) -> Iterator[ElementTree.Element]:
    for found in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        yield ElementTree.fromstring(found)


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_whole_and_fetch_nothing(name: str) -> None:
    page = Page(html_of(name))
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bsrc=|\bhref=", html_of(name))
    assert [tag for tag, _ in page.elements].count("h1") == 1


@pytest.mark.parametrize("name", PAGES)
def test_drawings_are_xml_inside_of_their_box_and_have_a_title(name: str) -> None:
    found = list(drawings(html_of(name)))
    assert (len(found) > 0) == (name != "bare")
    for drawing in found:
        _, _, width, height = map(float, drawing.attrib["viewBox"].split())
        first = drawing.find("title")
        assert first is not None
        assert first.text
        for element in drawing.iter():
            for x, y in _places(element):
                assert -0.01 <= x <= width + 0.01, ElementTree.tostring(element)
                assert -0.01 <= y <= height + 0.01, ElementTree.tostring(element)


def _places(element: ElementTree.Element) -> Iterator[tuple[float, float]]:
    given = element.attrib
    if "points" in given:
        yield from ((float(x), float(y)) for x, y in (p.split(",") for p in given["points"].split()))
    for x, y in (("x", "y"), ("x1", "y1"), ("x2", "y2"), ("cx", "cy")):
        if x in given:
            yield float(given[x]), float(given[y])
    if element.tag == "rect":
        yield float(given["x"]) + float(given["width"]), float(given["y"]) + float(given["height"])
    if "d" in given:
        yield from ((float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)", given["d"]))


@pytest.mark.parametrize("name", PAGES)
def test_labels_cover_no_other(name: str) -> None:
    for drawing in drawings(html_of(name)):
        boxes = [_box(text) for text in drawing.iter("text")]
        for i, (left, right, y) in enumerate(boxes):
            for other_left, other_right, other_y in boxes[:i]:
                apart = right <= other_left or other_right <= left or abs(y - other_y) >= 10
                assert apart, ElementTree.tostring(drawing)[:200]


def _box(text: ElementTree.Element) -> tuple[float, float, float]:
    x, wide = float(text.attrib["x"]), 6.2 * len(text.text or "")  # 12 px: a letter has 6.2 in most fonts
    left = {"middle": x - wide / 2, "end": x - wide}.get(text.attrib.get("text-anchor", ""), x)
    return left, left + wide, float(text.attrib["y"])


@pytest.mark.parametrize(("across", "up"), [(0.2, 0.0), (0.0, 0.25), (0.1, 0.1)])
def test_crowded_labels_find_free_places(across: float, up: float) -> None:
    """Points that lie nearly at one place: no label covers another, or a dot."""
    plot = Plot("crowd", Axis("ms", 0, 10), Axis("%", 0, 10))
    for i in range(8):
        plot.dot(5 + across * i, 5 + up * i, "c1", f"point {i}", f"label {i}")
    drawing = ElementTree.fromstring(plot.svg())
    boxes = [_box(text) for text in drawing.iter("text") if text.attrib["class"] == "label"]
    dots = [(float(d.attrib["cx"]), float(d.attrib["cy"])) for d in drawing.iter("circle")]
    assert len(boxes) == 8
    for i, (left, right, y) in enumerate(boxes):
        assert all(right <= a or b <= left or abs(y - c) >= 10 for a, b, c in boxes[:i])
        assert not any(left < x < right and y - 9 < at < y for x, at in dots)


def test_launches_are_drawn_apart() -> None:
    """No line crosses the time in which a new process started."""
    drawn = next(d for d in drawings(html_of("report")) if "over time" in (d.findtext("title") or ""))
    edges = sorted(float(e.attrib["x1"]) for e in drawn.iter("line") if e.attrib["class"] == "launch")
    assert len(edges) == 2
    lines = [[x for x, _ in _places(line)] for line in drawn.iter("polyline")]
    assert len(lines) == 6  # medians and pulses of three launches
    for xs in lines:
        assert not any(min(xs) < edge - 0.1 and max(xs) > edge + 0.1 for edge in edges)


def test_every_part_has_its_section() -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", html_of("report"))
    assert headings == [
        "Results",
        "What ran, and on what",
        *(f"Latencies: {name}" for name in ("single-stream", "multi-stream", "offline", "server")),
        "Stages of a call", "Batch sizes and threads", "Cold start", "Memory and size", "Roofline",
        "The device during the run", "Fidelity against speed", "Settings", "Not measured",
    ]  # fmt: skip
    bare = re.findall(r"<h2>(.*?)</h2>", html_of("bare"))
    assert bare == [name for name in headings if name[:9] != "Latencies" or "single" in name]


def test_figures_on_the_page_are_the_reports() -> None:
    report, page = make_report(), Page(html_of("report"))
    for result in report.scenarios:
        row = page.rows(result.scenario)[0]
        for cell, value in zip(
            row[1:4], (result.latency.p50, result.latency.p90, result.latency.p99), strict=True
        ):
            got = [float(part.replace(",", "")) for part in re.findall(r"[\d.,]+", cell)]
            assert got == pytest.approx([value.ms, value.low, value.high], rel=6e-3)
        assert float(row[4]) == pytest.approx(result.throughput_per_s, rel=6e-3)
        assert int(row[5]) == result.queries
    assert report.stages
    for stage in report.stages.stages:
        row = page.rows(stage.name)[0]
        assert float(row[1].removesuffix(" %")) == pytest.approx(100 * stage.share, abs=0.5)
        assert row[2].startswith(numbers.fixed(stage.time.p50.ms))
    for roof in report.roofline:
        assert page.rows(roof.tower)[0][5:8] == [
            numbers.number(roof.gflops),
            "190",
            numbers.percent(roof.share_of_peak),
        ]
    for point in report.variants:
        assert page.rows(point.id)[0][3] == numbers.number(point.relative_distance)
    for fact in (
        "640 MB",
        "fp32 on CPUExecutionProvider by onnxruntime-cpu",
        "governor performance; in kvm",
        "0.31",
    ):
        assert (
            fact.replace("640 MB", numbers.size(report.memory.rss_bytes if report.memory else 0)) in page.text
        )


def test_histograms_count_every_query_once() -> None:
    """Bars and the note of what lies beyond them add up to the queries; p99 is on the axis unless stalls are far away."""
    sections = html_of("report").split("<h2>Latencies: ")[1:]
    for section, result in zip(sections, make_report().scenarios, strict=True):
        counted = re.findall(r"<title>[\d.,–]+ ms: ([\d,]+) quer", section)
        left = re.search(r"Beyond [\d.]+ ms: (\d+) quer", section)
        assert sum(map(int, counted)) + (int(left[1]) if left else 0) == result.queries
        assert ("→" in section) == (result.scenario == "single-stream")
    assert "p99 47.1 →" in sections[0]


def test_the_cumulative_curve_passes_its_percentiles() -> None:
    for drawing in drawings(html_of("report")):
        if not (drawing.findtext("title") or "").startswith("Cumulative"):
            continue
        curve = next(drawing.iter("polyline")).attrib["points"].split()
        x, y = np.array([point.split(",") for point in curve], float).T
        dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in drawing.iter("circle")]
        assert len(dots) == 3
        for at, level in dots:
            near = np.abs(x - at) < 3
            assert y[near].min() - 4 <= level <= y[near].max() + 4, "pixels; 2 % of the axis"


def test_a_points_place_is_its_value() -> None:
    """The throughput curve, read back from the pixels by its own ticks."""
    drawing = next(d for d in drawings(html_of("report")) if (d.findtext("title") or "").startswith("Throughput and latency"))  # fmt: skip
    marks = [text for text in drawing.iter("text") if text.attrib["class"] == "tick"]
    level = {float(t.text or ""): float(t.attrib["y"]) - 4 for t in marks if t.attrib["text-anchor"] == "end"}
    across = {float(t.text or ""): float(t.attrib["x"]) for t in marks if t.attrib["text-anchor"] == "middle"}
    dots = [(float(d.attrib["cx"]), float(d.attrib["cy"])) for d in drawing.iter("circle")]
    slope, offset = np.polyfit(list(level.values()), list(level), 1)
    log_slope, log_offset = np.polyfit(list(across.values()), np.log(list(across)), 1)
    for (x, y), point in zip(dots, make_report().batches, strict=True):
        assert slope * y + offset == pytest.approx(point.throughput_per_s, rel=0.01)
        assert np.exp(log_slope * x + log_offset) == pytest.approx(point.latency.p50.ms, rel=0.01)


def test_what_is_missing_is_said_with_its_reason() -> None:
    report = make_bare_report()
    for shown in (html_of("bare"), to_text(report, 400)):
        for reason in ("/proc/self/status cannot be read", "no RAPL, INA3221 or NVML could be read"):
            assert f"not measured: {reason}" in shown
    text = Page(html_of("bare")).text
    for key, reason in report.not_measured.items():
        assert f"{key}{reason}" in text.partition("Not measured")[2] or reason in text
    assert "Not measured: switched off by --parts." in text
    assert "too few queries for an interval" in text
    assert "Nothing is missing." in to_html(replace(make_report(scenarios=FEW), not_measured={}))


def test_doubts_come_before_the_figures() -> None:
    page, screen = html_of("gpu"), to_text(make_report(gpu=True, throttled=True, scenarios=FEW))
    for shown in (page, screen, to_markdown(make_report(gpu=True, throttled=True, scenarios=FEW))):
        place = shown.index("the device throttled")
        assert place < shown.index("single-stream")
        assert "clock fell by 30 % during the run" in shown
    late = replace(make_server(), holds=False)
    assert "server: p99 is above its bound at this rate" in to_text(make_report(scenarios=(late,)))
    assert "bound of 120 ms broken at 52/s" in to_html(make_report(scenarios=(late,)))


def hostile_report() -> Any:
    report = make_report(scenarios=(replace(FEW[0], notes=(HOSTILE,)),))
    state = make_state()
    series = (replace(state.series[0], name=HOSTILE, unit=HOSTILE),)
    assert report.stages
    stages = replace(
        report.stages, stages=(replace(report.stages.stages[0], name=HOSTILE),), notes=(HOSTILE,)
    )
    return replace(
        report, created=HOSTILE, warnings=(HOSTILE,), not_measured={HOSTILE: HOSTILE}, stages=stages,
        subject=replace(report.subject, name=HOSTILE, bundle=HOSTILE, fell_back=HOSTILE, towers=(TowerUsed(*[HOSTILE] * 6),)),
        device=replace(report.device, name=HOSTILE, cpu=HOSTILE, governor=HOSTILE, packages={HOSTILE: HOSTILE}),
        settings=replace(report.settings, labels=(HOSTILE,)), state=replace(state, series=series, flags=(HOSTILE,), throttled=True),
        variants=tuple(replace(v, id=HOSTILE, failed=HOSTILE) for v in report.variants),
        roofline=(make_roof(tower=HOSTILE, by_operator={HOSTILE: 0.5}),), inputs=replace(report.inputs, sha256=HOSTILE),
        batches=make_sweep((1, 2), most=1), cold=tuple(replace(c, notes=(HOSTILE,)) for c in report.cold),
    )  # fmt: skip


def hostile_values() -> list[Any]:
    comparison = make_comparison(a=HOSTILE, b=HOSTILE, notes=(HOSTILE,), changes=(make_change(HOSTILE, HOSTILE, gate=HOSTILE, note=HOSTILE, unit=HOSTILE),))  # fmt: skip
    matrix = make_matrix(bundle=HOSTILE)
    cells = tuple(
        replace(c, engine=HOSTILE, variant=HOSTILE, reason=HOSTILE, provider=HOSTILE) for c in matrix.cells
    )
    return [hostile_report(), comparison, replace(matrix, cells=cells)]


@pytest.mark.parametrize("value", hostile_values(), ids=["report", "comparison", "matrix"])
def test_names_from_outside_stay_names(value: Any) -> None:
    html = to_html(value)
    page = Page(html)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.elements}
    assert "<script" not in html
    assert '<script src="//evil">&"' in page.text
    list(drawings(html))
    for shown in (html, to_markdown(value), to_text(value)):
        shown.encode()
        assert "\x1b" not in shown
    table = [line for line in to_markdown(value).splitlines() if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table[:3]}
    assert len(columns) == 1
    assert "<script" not in to_markdown(value).replace("\\<script", "")


def test_markdown_tables_are_valid() -> None:
    for value in (make_report(scenarios=FEW), make_bare_report(), make_comparison(), make_matrix()):
        for block in to_markdown(value).split("\n\n"):
            lines = block.splitlines()
            if lines[0].startswith("|"):
                assert len({line.count("|") for line in lines}) == 1
                assert re.fullmatch(r"\|( :--| --:|\s|\|)+", lines[1])


def test_terminal_lines_fit() -> None:
    for value in (
        make_report(gpu=True, throttled=True),
        make_bare_report(),
        make_comparison(),
        make_matrix(),
    ):
        text = to_text(value)
        assert max(map(len, text.splitlines())) <= 80
    assert to_text(make_comparison()).startswith("A gate failed: single-stream p99 +12 % (p99>+5%).")
    assert "single-stream  p90 12.7 (12.2–13.1) ms" in to_text(make_report())


def test_the_terminal_names_what_is_missing_but_not_what_nobody_wanted() -> None:
    report = replace(make_report(), not_measured={"state.power": "no counter", "cold": NOT_ASKED})
    assert "Not measured: state.power. The report says why." in to_text(report)
    assert "Not measured" not in to_text(replace(report, not_measured={"cold": NOT_ASKED}))


def test_verdicts_in_words() -> None:
    same = make_change(change=0.0, low=-0.01, high=0.01, verdict="same", failed=False)
    unsure = replace(same, undecided=True)
    limit = replace(
        same, verdict="undecided", gate="p99>20ms"
    )  # the change is not known, the figure is below
    plain = replace(same, gate="")
    for changes, said in (
        ((same,), "The gate holds. Of 1 figure: 1 same."),
        ((same, same), "All gates hold. Of 2 figures: 2 same."),
        ((limit,), "The gate holds. Of 1 figure: 1 undecided."),
        (
            (replace(limit, failed=True),),
            f"A gate failed: {limit.scenario} {limit.metric} {numbers.fixed(limit.b)} {limit.unit} (p99>20ms).",
        ),
        ((same, unsure), "No gate failed, but these runs cannot tell for all of them."),
        ((plain, replace(plain, verdict="worse")), "Of 2 figures: 1 worse, 1 same."),
    ):
        assert to_text(make_comparison(changes=changes, failed=False)).startswith(said)
    for change, said in ((limit, "passed"), (unsure, "undecided"), (replace(limit, failed=True), "failed")):
        assert f"{change.gate}: {said}" in to_markdown(make_comparison(changes=(change,))).replace("\\", "")


def test_matrix_keeps_failed_cells_with_their_reason() -> None:
    matrix = make_matrix()
    for shown in (to_html(matrix), to_markdown(matrix).replace("\\", ""), to_text(matrix, 400)):
        assert "no NVIDIA GPU here" in shown
        assert shown.count("onnxruntime-cuda, image-int8, batch 8") == 1
    nothing: Matrix = replace(matrix, cells=tuple(c for c in matrix.cells if c.state == "failed"))
    assert "<svg" not in to_html(nothing)


@pytest.mark.parametrize(
    "ms",
    [[1.0], [2.0] * 50, [0.0, 0.0], [1e-6, 1e6], [0.001, 0.002, 0.0015], make_latencies(5, 5000).tolist()],
    ids=["one", "equal", "zero", "far apart", "short", "many"],
)
def test_odd_latencies_are_drawn(ms: list[float]) -> None:
    base = make_scenario(count=len(ms))
    assert base.latencies
    kept = replace(base.latencies, ms=tuple(ms), at_ms=(0,) * len(ms))
    result = replace(base, latencies=kept, latency=make_spread(np.array(ms)), pulse=None)
    report = make_report(scenarios=(result,), state=State((), None, (), None, None, None, None, None, None))
    html = to_html(report)
    assert "nan" not in html.lower().replace("nano", "")
    assert len(html) < 400_000
    for drawing in drawings(html):
        for element in drawing.iter():
            assert all(0 <= x <= 441 for x, _ in _places(element))
    assert to_html(make_comparison(), (report, report))


def _luminance(colour: str) -> float:
    """Of WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_read_in_both_schemes() -> None:
    """AA of WCAG 2.2: 4.5 for text, 3 for marks; and a palette of which no two look alike."""
    css = (Path(__file__).parents[2] / "edgeclip/bench/render/page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in css.split("@media")[:2])
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for text, ground in (
            ("ink", "page"), ("quiet", "page"), ("ink", "panel"), ("quiet", "panel"), ("warn", "warn-page"), ("bad", "bad-page"), ("good", "good-page"),
        ):  # fmt: skip
            assert _contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
        marks = [scheme[f"c{i}"] for i in range(1, 9)]
        assert all(_contrast(mark, scheme["page"]) >= 3 for mark in marks)
        assert all(_contrast(scheme["inside"], mark) >= 4.5 for mark in marks)  # names inside of segments


def test_numbers_are_short() -> None:
    shown = {0.0: "0", 12.345: "12.3", 0.012345: "0.0123", 4810.4: "4,810", 999.6: "1,000", 100.0: "100", 1.2e-6: "1.2e-6", -3.14159: "-3.14", 2.0: "2"}  # fmt: skip
    assert {value: numbers.number(value) for value in shown} == shown
    assert numbers.number(None) == "-"
    assert numbers.interval(Quantile(12.0, 11.8, 12.31)) == "12.0 (11.8–12.3)"
    assert [numbers.size(n) for n in (3, 2500, 350e6, 2.15e9)] == ["3 B", "2.5 kB", "350 MB", "2.15 GB"]
    assert [numbers.percent(v, signed=True) for v in (0.123, -0.0042, 0.0)] == ["+12 %", "-0.4 %", "0.0 %"]
    assert [numbers.percent(v) for v in (0.042, 0.0994, 0.0996, 1.0)] == ["4.2 %", "9.9 %", "10 %", "100 %"]


def test_ticks_are_round_and_few() -> None:
    for low, high in ((0, 1), (0.3, 97), (11.8, 12.3), (-74, 15), (1e-9, 3e-9), (5e5, 6e8)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 7
        assert all(low - 1e-9 * high <= value <= high * (1 + 1e-9) for value in found)
        if low > 0:
            assert 2 <= len(log_ticks(low, high)) <= 9
    assert log_ticks(1, 1000) == [1, 10, 100, 1000] or len(log_ticks(1, 1000)) == 7


def test_an_axis_has_length_for_equal_values() -> None:
    for made in (
        axis("x", [3.0, 3.0]),
        axis("x", [0.0], zero=True),
        axis("x", [5.0], log=True),
        axis("x", [], log=True),
        axis("x", []),
    ):
        assert made.high > made.low
        assert 0 <= made((made.low + made.high) / 2) <= 1
    assert Axis("x", 99.94, 100.06).texts == ["99.95", "100.00", "100.05"]
    assert Axis("x", 0, 100).texts == ["0", "20", "40", "60", "80", "100"]
    assert Axis("x", 1, 100, log=True, first=0, last=10)(10) == pytest.approx(5)


def test_changes_are_drawn_with_their_names() -> None:
    starts = [make_change("cold", kind, gate="", failed=False) for kind in ("empty caches", "label pack")]
    unknown = make_change("p90", change=40.0, low=None, high=None, verdict="undecided", gate="", failed=False)
    changes = (
        *starts,
        replace(starts[0], scenario="empty caches"),
        unknown,
    )  # the third: a name that comes twice
    drawn = next(drawings(to_html(make_comparison(changes=changes))))
    texts = [element.text for element in drawn.iter() if element.tag == "text"]
    assert texts.count("cold start, label pack") == 1
    assert not any("4,000" in (text or "") for text in texts)  # what has no interval stretches no axis
    assert "empty caches: range" not in to_text(
        make_comparison(changes=tuple(replace(c, note="range") for c in starts))
    )


@pytest.mark.parametrize(
    ("changes", "failed", "css"),
    [
        ({"verdict": "same", "gate": ""}, False, "verdict"),
        ({"verdict": "worse", "gate": ""}, False, "verdict doubtful"),
        ({"verdict": "undecided", "gate": ""}, False, "verdict doubtful"),
        ({"verdict": "undecided", "undecided": True}, False, "verdict doubtful"),
        ({"verdict": "undecided", "gate": "p99>20ms"}, False, "verdict"),
        ({}, True, "verdict failed"),
    ],
)
def test_only_good_news_is_green(changes: dict[str, Any], failed: bool, css: str) -> None:
    page = Page(
        to_html(make_comparison(changes=(make_change(**{"failed": failed, **changes}),), failed=failed))
    )
    assert [a["class"] for tag, a in page.elements if tag == "p" and "verdict" in (a.get("class") or "")] == [
        css
    ]


def test_plots_that_would_mislead() -> None:
    report = make_report()
    idle = Series("cpu load", "%", (0.0, 1.0, 2.0), (99.0, 100.0, 99.0))
    alone = replace(report, variants=report.variants[:1], state=replace(report.state, series=(idle,)))
    titles = {drawn[0].text: drawn for drawn in drawings(to_html(alone))}
    assert not any("Fidelity" in str(title) for title in titles)  # one variant: nothing to choose
    assert "0" in [element.text for element in titles["cpu load over time"].iter()]  # no storm of one percent
