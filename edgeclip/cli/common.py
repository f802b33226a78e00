"""What several verbs share: picture arguments, label arguments, and the two ways of printing."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeclip.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}


def model_options(command: F) -> F:
    """`-b/--bundle`, `--engine` and `--threads`: which model runs, on what."""
    command = click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads. Default: the cores this process may use."
    )(command)
    command = click.option(
        "--engine", help="onnxruntime-cpu or onnxruntime-cuda. Default: the best one that opens here."
    )(command)
    return click.option(
        "-b", "--bundle", default="nano", show_default=True, help="Bundle folder, .zip, hf:ORG/NAME, or nano."
    )(command)


def json_option(command: F) -> F:
    """`--json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="JSON on stdout (JSON Lines for several inputs)."
    )(command)


def strict_option(command: F) -> F:
    """`--strict`."""
    return click.option("--strict", is_flag=True, help="Exit 1 when any input failed or any text was cut.")(
        command
    )


def find_pictures(arguments: Sequence[str]) -> list[Path]:
    """Files, folders (searched below, by picture suffix) and globs, in a stable order, each path once.

    Raises:
        InputError: an argument names nothing, or a folder or glob without any picture.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            matches = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()
            )
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(
                Path(name) for name in glob.glob(argument, recursive=True) if Path(name).is_file()
            )
        if not matches:
            kind = "holds no pictures" if path.is_dir() else "no such file, folder or glob"
            raise InputError(f"{argument}: {kind}. Pictures end in {', '.join(sorted(PICTURE_SUFFIXES))}.")
        found.update(dict.fromkeys(matches))
    return list(found)


def parse_labels(value: str | None, repeated: Sequence[str]) -> list[str]:
    """`--labels 'a cat,a dog'` or `--labels @file` (one a line, # starts a comment), and repeated `--label`.

    Raises:
        InputError: the file cannot be read, or no label came at all.
    """
    labels = list(repeated)
    if value and value.startswith("@"):
        file = Path(value[1:])
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--labels {value}: cannot read the file ({error}). Expected UTF-8 text, one label a line."
            ) from error
        labels += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    elif value:
        labels += [part.strip() for part in value.split(",") if part.strip()]
    if not labels:
        raise InputError(
            "no labels. Pass --labels 'a cat,a dog', --labels @labels.txt, or --label 'a cat' once for each."
        )
    return labels


def emit(record: dict[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    click.echo(json.dumps(record, ensure_ascii=False))


def console() -> Console:
    """Rich console on stdout, for tables. Text is shown as it is: a path or label may hold [brackets]."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def notes() -> Console:
    """Rich console on stderr, for progress and notes."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


T = TypeVar("T")


def tracked(items: Iterable[T], total: int, what: str, quiet: bool) -> Iterator[T]:
    """Show a progress bar on stderr while `items` are worked through, when it is a terminal and there are many."""
    console = notes()
    if quiet or total < 8 or not console.is_terminal:
        yield from items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=total)


def finish(done: int, failures: Sequence[tuple[str, str]], strict: bool) -> int:
    """Report what failed on stderr and give the exit code: 0, or 1 with --strict, or 2 when nothing was done."""
    for path, reason in failures:
        click.echo(f"edgeclip: skipped: {reason if path in reason else f'{path}: {reason}'}", err=True)
    if failures and done == 0:
        return 2
    return 1 if failures and strict else 0
