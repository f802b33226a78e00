"""What the verbs of `edgeclip index` show: a progress bar with its rate, and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclip.cli.common import console, notes

if TYPE_CHECKING:
    from edgeclip.runtime.index.build_words import BuildReport, Progress


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Gives what is told of each entry and shows it on stderr: how many, how fast, how long still. None where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[pace]}"),
    )
    with rich.Progress(*columns, console=notes(), transient=True) as bar:
        task, pace = bar.add_task("index", total=None, pace=""), Pace()
        yield lambda made: bar.update(
            task, completed=made.done, total=made.total, pace=pace.told(made, time.monotonic())
        )


class Pace:
    """How fast a build goes and how long it still takes. What is not embedded takes no time: the clock starts at the first that is."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None  # time in s and entries done by then

    def told(self, made: Progress, now: float) -> str:
        """For the bar; `now` in seconds."""
        parts = []
        if made.embedded and self._first is None:
            self._first = now, made.done - 1
        if self._first and now > self._first[0]:
            seconds = now - self._first[0]
            parts.append(f"{made.embedded / seconds:.1f}/s")
            if made.total is not None:
                left = max(made.total - made.done, 0) * seconds / (made.done - self._first[1])
                parts.append(f"{timedelta(seconds=round(left))} left")
        if made.failures:
            parts.append(f"{len(made.failures)} unreadable")
        return ", ".join(parts)


def build_table(place: Path, report: BuildReport, facts: Mapping[str, Any]) -> None:
    """One table of what a build did and what the index is now."""
    rows = [
        ("added", f"{report.added:,}"),
        ("updated", f"{report.updated:,}"),
        ("unchanged", f"{report.unchanged:,}"),
        ("removed", f"{report.removed:,}"),
        ("unreadable", f"{len(report.failures):,}"),
        (
            "embedded",
            f"{report.embedded:,} in {report.seconds:.1f} s, {report.rate:.1f}/s"
            if report.embedded
            else "nothing",
        ),
    ]
    show(str(place), [(name, value) for name, value in rows if value != "0"] + size_rows(facts))


def size_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How large an index is, and how much a search finds."""
    rows = [("vectors", f"{facts['items']:,}"), ("on disk", size(facts["bytes"]))]
    if facts["bytes_per_item"] is not None:
        rows.append(("bytes a vector", f"{facts['bytes_per_item']:,.0f}"))
    recall = facts["measured"].get("recall")
    if recall:
        rows.append((f"recall@{recall['k']}", recall_text(recall)))
    return rows


def recall_text(recall: Mapping[str, Any]) -> str:
    """A measured recall, with what the stored precision keeps of it."""
    stored = f"; {recall['stored']:.3f} of what fp32 finds" if recall.get("stored") is not None else ""
    return f"{recall['recall']:.3f} of the exact answer ({recall['queries']} queries{stored})"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"


def show(title: str, rows: list[tuple[str, str]]) -> None:
    """Two columns."""
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)
