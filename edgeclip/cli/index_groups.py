"""What `edgeclip index dedupe`, `cluster` and `link` share: files of lines, contact sheets, a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import notes
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.index.types import Hit

SHOWN = 20  # groups in a table; --json and -o have all


@contextmanager
def counted(total: int, what: str, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """Gives what is told how many more are done, and shows it on stderr. None where stderr is no terminal or there are few."""
    if quiet or total < 10_000 or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=notes(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON Lines, whole or not at all."""
    from edgeclip.files import write_file

    write_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_sheet(path: Path, what: str, hits: Sequence[Hit], index: Index) -> None:
    """A contact sheet of these items."""
    from edgeclip.files import write_file
    from edgeclip.runtime.index.sheet import Asked, Part, contact_sheet

    asked = Asked([Part(what, 1)], str(index.path), index.origin.name, len(index))
    write_file(path, contact_sheet(hits, asked))
    click.echo(f"{path}: {len(hits)} pictures", err=True)


def read_lines(path: Path, wanted: str) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file. Raises InputError, with the line, for anything else; `wanted` says what a line looks like."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({reason}). Expected JSON Lines like {wanted}.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: no JSON ({error}). Expected {wanted}.") from error
        if not isinstance(record, dict):
            raise InputError(
                f"{path}, line {number}: expected an object like {wanted}, got {type(record).__name__}."
            )
        found.append(record)
    return found
