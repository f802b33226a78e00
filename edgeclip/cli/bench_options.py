"""Options that measuring verbs share, the live line while they measure, and where their results go."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from edgeclip.bench.settings import SCENARIOS
from edgeclip.cli.common import engine_options, notes, parse_labels, say
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.bench.cells import Matrix
    from edgeclip.bench.comparison import Comparison
    from edgeclip.bench.plan import Tell
    from edgeclip.bench.report import Report
    from edgeclip.bench.settings import Settings

    Result = Report | Comparison | Matrix

F = TypeVar("F", bound=Callable[..., Any])

SECONDS = click.FloatRange(min=0, min_open=True)


def settings_options(command: F) -> F:
    """What is measured, on what, and how long. The command gets `settings` and `images`."""

    @wraps(command)
    def parsed(
        *, task: str, quick: bool, full: bool, labels: str | None, label: tuple[str, ...], seed: int, threads: int | None,
        variants: tuple[str, ...], engine: str | tuple[str, ...] | None, exact: bool, part_seconds: float | None = None, **others: Any,
    ) -> Any:  # fmt: skip
        from edgeclip.bench.settings import preset

        if quick and full:
            raise click.UsageError("--quick and --full: expected one of them.")
        given = {
            "part_seconds": part_seconds,
            "threads": threads,
            "labels": tuple(parse_labels(labels, label)) if labels is not None or label else None,
        }
        settings: Settings = preset(
            "quick" if quick else "full" if full else "standard",
            task=task,
            seed=seed,
            variants=variants,
            engines=(engine,) if isinstance(engine, str) else engine or (),
            decode="exact" if exact else "fast",
            **{name: value for name, value in given.items() if value is not None},
        )
        return command(settings=settings, **others)

    found = cast("F", engine_options(parsed))
    for option in reversed(
        (
            click.option("--task", default="auto", metavar="TASK", help="What a query does: classify, detect, embed, embed-text or search. Default: detect for a bundle that can only detect, else classify."),
            click.option("--images", type=click.Path(path_type=Path), metavar="DIR", help="Folder of your pictures, that queries draw from. Default: pictures that edgeclip makes, as large as a photograph."),
            click.option("--quick", is_flag=True, help="To look around: a tenth of the time, wider intervals."),
            click.option("--full", is_flag=True, help="As long as MLPerf asks for: 600 s and 24,576 queries of each scenario."),
            click.option("--labels", help="What classify chooses from, or detect looks for: 'a cat,a dog', or @FILE with one a line. Default: labels baked in, else twenty of edgeclip's own."),
            click.option("--label", multiple=True, help="One label; repeat for more (for labels with commas)."),
            click.option("--exact", is_flag=True, help="Decode every pixel of large JPEGs."),
            click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which pictures queries draw, and when they arrive."),
        )
    ):  # fmt: skip
        found = option(found)
    return found


def scenario_options(command: F) -> F:
    """Which scenarios, and how long each takes, on top of `settings_options`."""

    @wraps(command)
    def parsed(
        *, settings: Settings, scenarios: tuple[str, ...], launches: int | None, min_seconds: float | None,
        max_seconds: float | None, min_queries: int | None, **others: Any,
    ) -> Any:  # fmt: skip
        if min_seconds is not None and max_seconds is None:  # as many times more as the preset allows
            max_seconds = min_seconds * settings.max_seconds / settings.min_seconds
        given = {
            "min_seconds": min_seconds,
            "max_seconds": max_seconds,
            "min_queries": min_queries,
            "launches": launches,
        }
        if scenarios:
            every = () if "none" in scenarios else SCENARIOS
            settings = replace(
                settings, scenarios=tuple(n for n in every if n in scenarios or "all" in scenarios)
            )
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return command(settings=replace(settings, **chosen), **others)

    found = cast("F", parsed)
    for option in (
        click.option("--min-queries", type=click.IntRange(min=1), help="Fewest queries of a scenario. Default: 1024; 64 with --quick, 24576 with --full."),
        click.option("--max-seconds", type=SECONDS, help="Time at which a scenario ends even if it lacks queries. Default: 180, or three times --min-seconds."),
        click.option("--min-seconds", type=SECONDS, help="Shortest time of a scenario. Default: 60; 8 with --quick, 600 with --full."),
        click.option("--launches", type=click.IntRange(min=1), help="Fresh processes that a scenario is shared out to. Default: 10; 3 with --quick."),
        click.option("--scenario", "scenarios", multiple=True, type=click.Choice([*SCENARIOS, "all", "none"]), help="How queries come; may be repeated. Default: all but server."),
    ):  # fmt: skip
        found = option(found)
    return found


def part_option(what: str) -> Callable[[F], F]:
    """`--part-seconds`: the time of `what`."""
    return click.option("--part-seconds", type=SECONDS, help=f"Time of {what}. Default: 10; 1 with --quick, 60 with --full.")  # fmt: skip


def page_options(command: F) -> F:
    """`--html` and `--markdown`."""
    for option in (
        click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write Markdown for a README into this file."),
        click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write one self-contained page with plots into this file."),
    ):  # fmt: skip
        command = option(command)
    return command


def check_places(*files: Path | None) -> None:
    """Refuse, before minutes are spent on measuring, a file that cannot be written. Raises InputError."""
    given = [file for file in files if file is not None]
    for file in given:
        folder = next((parent for parent in file.absolute().parents if parent.exists()), file)
        if file.is_dir() or not folder.is_dir():
            raise InputError(f"{file}: expected the name of a file, got a folder or a place below a file.")
    if len({file.resolve() for file in given}) < len(given):
        raise InputError(f"{given[-1]}: two results would be written to the same file. Choose two names.")


def write_result(
    found: Result,
    output: Path | None,
    html: Path | None,
    markdown: Path | None,
    as_json: bool,
    sides: tuple[Report, Report] | None = None,
) -> None:
    """Write a report, comparison or matrix into the files that were asked for, then print it.

    Args:
        sides: the two reports of a comparison, for its page.
    """
    from edgeclip.bench.reading import to_json
    from edgeclip.bench.render import to_html, to_markdown, to_text
    from edgeclip.files import write_file

    def page(found: Result) -> str:
        return to_html(found, sides)

    for path, make in ((output, to_json), (html, page), (markdown, to_markdown)):
        if path is not None:
            write_file(path, make(found))
    click.echo((to_json(found) if as_json else to_text(found)).rstrip())


@contextmanager
def live_line() -> Iterator[Tell]:
    """What is being measured and the time left: one line on a terminal that counts down; elsewhere a line for each step."""
    if not sys.stderr.isatty():
        yield lambda what, left_s: say(f"{what}{_left(left_s)}")
        return
    line = _Line()
    with notes().status(line, refresh_per_second=2):
        yield line.tell


class _Line:
    """The line's text at the moment when it is drawn."""

    def __init__(self) -> None:
        self._what, self._end = "getting ready", 0.0

    def tell(self, what: str, left_s: float) -> None:
        self._what, self._end = what, time.monotonic() + left_s

    def __rich__(self) -> str:
        return f"{self._what}{_left(self._end - time.monotonic())}"


def _left(seconds: float) -> str:
    if seconds < 1:
        return ""
    return f", about {seconds:.0f} s left" if seconds < 100 else f", about {seconds / 60:.0f} min left"
