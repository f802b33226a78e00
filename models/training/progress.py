"""The bar on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Tell = Callable[[int, float, "float | None"], None]


@contextlib.contextmanager
def progress_bar(steps: int, start: int, show: bool) -> Iterator[Tell]:
    """Yield a function that takes steps done, the loss, and the best score so far. Shows nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    if not (show and console.is_terminal):
        yield lambda done, loss, best: None
        return
    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("train", total=steps, completed=start, figures="")

        def tell(done: int, loss: float, best: float | None) -> None:
            speed = bar.tasks[0].speed
            parts = [
                f"loss {loss:.4f}",
                f"{speed:.2f} steps/s" if speed else "",
                f"best {best:.4f}" if best is not None else "",
            ]
            bar.update(task, completed=done, figures="  ".join(part for part in parts if part))

        yield tell


@contextlib.contextmanager
def counting(what: str, total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes how many of `total` are done. Shows nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    if not (show and console.is_terminal):
        yield lambda done: None
        return
    with Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
