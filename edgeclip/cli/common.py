"""What several verbs share: picture arguments, label arguments, and the two ways of printing."""

from __future__ import annotations

import glob
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from edgeclip.errors import EdgeClipError, InputError
from edgeclip.files import PICTURE_SUFFIXES

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Failures = list[tuple[str, str]]  # (path, reason)


def model_options(command: F) -> F:
    """`-b/--bundle`, and the options of `engine_options`: which model runs, on what."""
    option = click.option(
        "-b",
        "--bundle",
        default="nano",
        show_default=True,
        help="The model: a bundle folder, a .zip of one, hf:ORG/NAME, or nano.",
    )
    return option(engine_options(command))


def engine_options(command: F) -> F:
    """`--variant`, `--engine`, `--require` and `--threads`: what runs a model.

    The command gets `engine` as `edgeclip.load` takes it.
    """

    @wraps(command)
    def parsed(*, engine: str | None, require: str | None, **others: Any) -> Any:
        return command(engine=wanted_engines(engine, require), **others)

    found = cast("F", parsed)
    for option in (
        click.option(
            "--variant",
            "variants",
            multiple=True,
            metavar="ID",
            help="Graph to run, as `edgeclip inspect` lists them; one for each tower. Default: the first that opens.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="CPU threads. Default: one for each physical core that this process may use.",
        ),
        click.option(
            "--require",
            metavar="ENGINE",
            help="What must run it: fail, and say why, rather than run anything else.",
        ),
        click.option(
            "--engine",
            metavar="ENGINE[,ENGINE...]",
            help="What runs it, and nothing else, e.g. onnxruntime-cpu; of several the first that opens, and why the others "
            "did not is told. Default: the best one that opens here. `edgeclip doctor` lists them.",
        ),
    ):
        found = option(found)
    return found


def wanted_engines(engine: str | None, require: str | None) -> str | tuple[str, ...] | None:
    """`--engine` and `--require` as `edgeclip.load` takes them: one that must run, several in order, or None for any.

    Raises:
        InputError: both were given, or an empty name.
    """
    if require is not None and engine is not None:
        raise InputError(
            f"--engine {engine} and --require {require}: expected one of them. --require allows no other engine."
        )
    given = require if require is not None else engine
    if given is None:
        return None
    names = (given,) if require is not None else tuple(part.strip() for part in given.split(","))
    if not all(names):
        raise InputError(
            f"--engine {given!r}: expected names separated by commas, e.g. tensorrt,onnxruntime-cpu."
        )
    return names[0] if len(names) == 1 else names


def json_option(command: F) -> F:
    """`--json` of a verb with one result."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")(
        command
    )


def json_lines_option(command: F) -> F:
    """`--json` of a verb with a result for each input."""
    text = "Print JSON Lines, for programs: one object for each input."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def strict_option(command: F) -> F:
    """`--strict`."""
    return click.option("--strict", is_flag=True, help="Exit 1 when any input failed or any text was cut.")(
        command
    )


def pickle_option(command: F) -> F:
    """`--allow-pickle` of verbs that open Qdrant's folders."""
    text = "Open a Qdrant folder that is there: it holds pickles, which run code. For your own only."
    return click.option("--allow-pickle", is_flag=True, help=text)(command)


def find_pictures(arguments: Sequence[str], as_json: bool) -> tuple[list[Path], Failures]:
    """Files, folders (searched below, by picture suffix) and globs, in a stable order, each file once.

    Returns:
        the pictures, and the arguments that name none; with `as_json` those are printed at once.
    """
    found: dict[Path, Path] = {}
    failures: Failures = []
    for argument in arguments:
        try:
            matches, reason = _matches(argument)
        except OSError as error:  # a name too long, a folder that may not be entered
            matches, reason = [], f"cannot be read ({error.strerror})."
        for match in matches:
            found.setdefault(match.absolute(), match)
        if not matches:
            _fail(failures, argument, f"{argument}: {reason}", as_json)
    return list(found.values()), failures


def _matches(argument: str) -> tuple[list[Path], str]:
    path, suffixes = Path(argument), ", ".join(sorted(PICTURE_SUFFIXES))
    if path.is_dir():
        pictures = (p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        return sorted(pictures), f"the folder holds no pictures. Their names end in {suffixes}."
    if path.exists():  # before the glob: a name may hold [brackets]
        return [path], ""
    names = glob.glob(argument, recursive=True)  # noqa: PTH207  (Path.glob refuses absolute patterns)
    return sorted(
        Path(name) for name in names if Path(name).is_file()
    ), "no such file, folder or glob. Check the path."


def answers(
    inputs: Sequence[Path | str],
    results: Iterable[T | EdgeClipError],
    failures: Failures,
    what: str,
    as_json: bool,
) -> Iterator[tuple[str, T]]:
    """The inputs that worked, with their results; the others are added to `failures`."""
    for item, result in tracked(zip(inputs, results, strict=True), len(inputs), what, as_json):
        if isinstance(result, EdgeClipError):
            _fail(failures, str(item), str(result), as_json)
        else:
            yield str(item), result


def _fail(failures: Failures, path: str, reason: str, as_json: bool) -> None:
    failures.append((path, reason))
    if as_json:
        emit({"path": path, "error": reason})


def finish(done: int, failures: Failures, strict: bool) -> int:
    """Report what failed on stderr and give the exit code: 0, or 1 with --strict, or 2 when nothing was done."""
    for path, reason in failures:
        say(f"skipped: {reason if path in reason else f'{path}: {reason}'}")
    if failures and done == 0:
        return 2
    warned = click.get_current_context().find_object(Warnings)
    return 1 if strict and (failures or (warned and warned.count)) else 0


class Warnings(logging.Handler):
    """Shows what the library warns of (a text that was cut) as notes on stderr, and counts it for --strict."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """One line on stderr."""
        self.count += getattr(record, "counted", True)
        say(record.getMessage())


def parse_labels(value: str | None, repeated: Sequence[str]) -> list[str]:
    """`--labels 'a cat,a dog'` or `--labels @file` (one a line, # starts a comment), and repeated `--label`.

    Raises:
        InputError: the file cannot be read or holds no label, or no label came at all.
    """
    labels = list(repeated)
    if value and value.startswith("@"):
        labels += _labels_in(value)
    elif value:
        labels += [part.strip() for part in value.split(",") if part.strip()]
    if not labels:
        raise InputError(
            "no labels. Pass --labels 'a cat,a dog', --labels @labels.txt, or --label 'a cat' once for each."
        )
    return labels


def _labels_in(value: str) -> list[str]:
    try:
        lines = Path(value[1:]).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"--labels {value}: cannot read the file ({reason}). Expected UTF-8 text, one label a line."
        ) from error
    labels = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not labels:
        raise InputError(
            f"--labels {value}: the file holds no label. Expected one a line; # starts a comment."
        )
    return labels


def emit(record: dict[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a file name that is no Unicode, or a terminal without it: \u escapes
        text = json.dumps(record)
    click.echo(text)


def say(message: str) -> None:
    """One note, on one line of stderr."""
    line = "edgeclip: " + " ".join(line.strip() for line in message.splitlines())
    line = re.sub(
        r"[\x00-\x1f\x7f-\x9f]", "\ufffd", line
    )  # a name from a file may hold what a terminal obeys
    sys.stderr.write(line + "\n")  # not click.echo: it would write into a progress bar instead of above it


def console() -> Console:
    """Rich console on stdout, for tables. Text is shown as it is: a path or label may hold [brackets]."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 10_000  # a pipe or file has no edge at which to fold a path
    return Console(width=width, markup=False, highlight=False, emoji=False)


def notes() -> Console:
    """Rich console on stderr, for progress and notes."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def tracked(items: Iterable[T], total: int, what: str, quiet: bool) -> Iterator[T]:
    """Show a progress bar on stderr while `items` are worked through, when it is a terminal and there are many."""
    if quiet or total < 8 or not sys.stderr.isatty():
        yield from items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=notes(), transient=True) as progress:
        yield from progress.track(items, total=total)
