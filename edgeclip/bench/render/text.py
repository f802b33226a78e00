"""What the terminal shows: one screen, 80 columns, the doubts before the figures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgeclip.bench.cells import Matrix
from edgeclip.bench.comparison import Comparison
from edgeclip.bench.render import compared, tables
from edgeclip.bench.render.grid import Grid
from edgeclip.bench.render.words import clean
from edgeclip.bench.report import NOT_ASKED, Report

if TYPE_CHECKING:
    from rich.console import Console


def of_report(report: Report, width: int) -> str:
    """A summary."""
    out = _console(width)
    _facts(out, tables.subject(report))
    for doubt in tables.doubts(report):
        out.print(f"! {clean(doubt)}")
    summary = tables.scenarios(report)
    short = summary.only("scenario", "result", "p50 ms", summary.head[5], "queries", "evidence")
    rows = tuple((*row[:2], row[2].partition(" ")[0], *row[3:]) for row in short.rows)  # 80 columns
    _print(out, replace(short, rows=rows))
    stages, rooflines, variants = tables.stages(report), tables.roofline(report), tables.variants(report)
    shown = [
        stages and stages.only("stage", "share", "p50 ms", "p99 ms"),
        tables.sweep(report, report.batches, "batch"),
        tables.sweep(report, report.threads, "threads"),
        variants and variants.only("variant", "p50 ms", "distance", "size"),
        tables.cold(report),
        rooflines
        and rooflines.only("tower", "precision", "ms", "GFLOP/s", "of peak", "reading weights", "bound by"),
    ]
    for grid in shown:
        if grid:
            _print(out, grid)
    out.print()
    _facts(out, [*tables.memory(report), *tables.state(report)])
    if absent := [name for name, why in report.not_measured.items() if why != NOT_ASKED]:
        out.print(f"Not measured: {clean(', '.join(absent))}. The report says why.")
    return _text(out)


def of_comparison(comparison: Comparison, width: int) -> str:
    """The verdict, then the figures."""
    out = _console(width)
    out.print(clean(compared.verdict(comparison)))
    _facts(out, [("A", comparison.a), ("B", comparison.b)])
    changes = compared.changes(comparison)
    short = [
        (row[0], f"{row[2]} {row[1]}", f"{row[3]} {row[1]}", *row[4:6]) for row in changes.rows
    ]  # gates stand below: 80 columns do not hold them
    head = ("figure", "A", "B", "change (95 % sure)", "verdict")
    _print(out, Grid("", head, tuple(short), (), changes.words))
    for line in compared.gates(comparison):
        out.print(clean(line))
    for note in changes.notes:
        out.print(clean(note))
    return _text(out)


def of_matrix(matrix: Matrix, width: int) -> str:
    """One row each cell."""
    out = _console(width)
    _facts(out, [("bundle", matrix.bundle), *tables.device_facts(matrix.device)])
    cells = compared.cells(matrix).only("engine", "variant", "batch", "p50 ms", "samples/s", "distance")
    # 80 columns do not hold the intervals beside two long names
    short = tuple((*row[:3], row[3].partition(" ")[0], *row[4:]) for row in cells.rows)
    _print(out, replace(cells, title="", rows=short))
    return _text(out)


def _console(width: int) -> Console:
    from rich.console import Console  # late: only a terminal's summary needs it

    # a path or label may hold [brackets]
    return Console(
        file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False, color_system=None
    )


def _text(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines())


def _facts(out: Console, facts: Sequence[tuple[str, str]]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in facts:
        table.add_row(clean(name), clean(text))
    out.print(table)


def _print(out: Console, grid: Grid) -> None:
    from rich import box
    from rich.table import Table

    out.print(f"\n{grid.title}" if grid.title else "")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for i, name in enumerate(grid.head):
        table.add_column(name, justify="left" if grid.is_words(i) else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*map(clean, row))
    out.print(table)
    for note in grid.notes:
        out.print(clean(note))
