"""A report for a README: what ran on what, and the tables that people compare."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeclip.bench.cells import Matrix
from edgeclip.bench.comparison import Comparison
from edgeclip.bench.render import compared, tables
from edgeclip.bench.render.grid import Grid
from edgeclip.bench.render.words import clean
from edgeclip.bench.report import Report


def of_report(report: Report) -> str:
    """Scenarios, stages and batch sizes."""
    summary = tables.scenarios(report)
    parts = [
        f"### Latency of {_escape(report.subject.name)}",
        _facts([*tables.subject(report), *tables.memory(report)]),
        _list(tables.doubts(report), "> "),
        _table(
            summary.only("scenario", "result", "p50 ms", "p99 ms", summary.head[5], "queries", "evidence")
        ),
    ]
    for grid in (
        tables.stages(report), tables.sweep(report, report.batches, "batch"), tables.variants(report), tables.cold(report), tables.roofline(report)
    ):  # fmt: skip
        if grid:
            parts += [f"#### {grid.title}", _table(grid)]
    intervals = "In brackets: intervals of 95 %."
    parts.append(f"{intervals} Measured {_escape(report.created)} by edgeclip {_escape(report.edgeclip)}.")
    return _page(parts)


def of_comparison(comparison: Comparison) -> str:
    """The verdict and all changes."""
    facts = _facts([("A", comparison.a), ("B", comparison.b)])
    return _page(
        [
            f"**{_escape(compared.verdict(comparison))}**",
            facts,
            _table(compared.changes(comparison).filled()),
            compared.READING,
        ]
    )


def of_matrix(matrix: Matrix) -> str:
    """All cells."""
    facts = _facts([("bundle", matrix.bundle), *tables.device_facts(matrix.device)])
    return _page([f"### Latency of {_escape(matrix.bundle)}", facts, _table(compared.cells(matrix))])


def _page(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(grid: Grid) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(_escape(cell) for cell in cells)} |"

    rule = [":--" if grid.is_words(i) else "--:" for i in range(len(grid.head))]
    rows = [line(grid.head), f"| {' | '.join(rule)} |", *map(line, grid.rows)]
    return "\n".join(rows) + ("\n\n" + _list(grid.notes) if grid.notes else "")


def _list(texts: Sequence[str], lead: str = "") -> str:
    return "\n".join(f"{lead}- {_escape(text)}" for text in texts)


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {_escape(name)}: {_escape(text)}" for name, text in facts)


def _escape(text: str) -> str:
    """A name stays a name: no table cell, tag, link or emphasis begins in it."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", clean(text))
