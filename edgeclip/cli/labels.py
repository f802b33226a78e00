"""`edgeclip labels make|show|fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeclip.cli.common import (
    answers,
    console,
    emit,
    find_pictures,
    finish,
    json_option,
    model_options,
    parse_labels,
    strict_option,
)
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.evaluate.labels import Fit

MAKE_EXAMPLES = """\b
Examples:
  edgeclip labels make --labels 'a cat,a dog' -o pets.labels
  edgeclip labels make --labels @labels.txt --template 'a photo of a {}' -b clip-b32/ -o shop.labels
"""

SHOW_EXAMPLES = """\b
Examples:
  edgeclip labels show pets.labels
  edgeclip labels show pets.labels --json
"""

FIT_EXAMPLES = """\b
Examples:
  edgeclip labels fit pets.labels --images pictures/ -b clip-b32/ -o sure.labels     pictures/a_cat/1.jpg ...
  edgeclip labels fit pets.labels --images pictures/ -o sure.labels --precision 0.95 --json
"""

_MORE = (SHOW_EXAMPLES + FIT_EXAMPLES).replace("\b\nExamples:\n", "")


@click.group(epilog=MAKE_EXAMPLES + _MORE)
def command() -> None:
    """Make, show and fit label packs: labels, embedded once.

    With a pack a device needs neither text tower nor tokenizer.
    """


@command.command(epilog=MAKE_EXAMPLES)
@click.option("--labels", help="What to embed: 'a cat,a dog', or @FILE with one label a line.")
@click.option("--label", multiple=True, help="One label; repeat for more (for labels with commas).")
@click.option("--template", multiple=True, help="Prompt with a {} for the label; repeated ones are averaged.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The pack to write.",
)
@model_options
@json_option
def make(
    labels: str | None,
    label: tuple[str, ...],
    template: tuple[str, ...],
    output: Path,
    bundle: str,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
    as_json: bool,
) -> None:
    """Embed labels once, into a small file bound to this model."""
    import edgeclip

    wanted = parse_labels(labels, label)
    with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
        pack = model.make_labels(wanted, templates=template or None)
    pack.save(output)
    record = {
        "path": str(output),
        "labels": len(pack.labels),
        "bytes": output.stat().st_size,
        "model_id": pack.model_id,
    }
    if as_json:
        emit(record)
    else:
        click.echo(f"{output}: {record['labels']} labels, {record['bytes']} bytes", err=True)


@command.command(epilog=SHOW_EXAMPLES)
@click.argument("pack", type=click.Path(exists=True, dir_okay=False))
@json_option
def show(pack: str, as_json: bool) -> None:
    """Print what a label pack holds."""
    import edgeclip

    opened = edgeclip.LabelPack.open(pack)
    if as_json:
        emit(opened.to_dict())
        return
    from rich.table import Table

    table = Table("index", "label")
    for index, name in enumerate(opened.labels):
        table.add_row(str(index), name)
    screen = console()
    screen.print(table)
    screen.print(f"model {opened.model_id[:16]}, templates: {', '.join(opened.templates)}")


@command.command(epilog=FIT_EXAMPLES)
@click.argument("pack", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    required=True,
    help="Holds a folder of pictures for each label, named after it; a label may lack one.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The pack to write.",
)
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True),
    help="Answer only what is right so often. Default: the best balance of precision and recall (F1).",
)
@model_options
@strict_option
@json_option
def fit(
    pack: str,
    images: Path,
    output: Path,
    precision: float | None,
    bundle: str,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> int:
    """Fit a threshold for each label to your pictures.

    Fitted on every second picture of a label; the figures are of the others. A label with few pictures leans on the
    threshold that is best for all labels together.
    """
    import numpy as np

    import edgeclip
    from edgeclip.evaluate.labels import fit_pack, full_scores, label_folders

    opened = edgeclip.LabelPack.open(pack)
    places = label_folders(opened.labels, images)
    paths, failures = find_pictures([str(place) for place in places.values()], False)
    number = {place: i for i, place in places.items()}
    rows, right = [], []
    with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
        for path, row in answers(paths, full_scores(model, opened, paths), failures, "scores", False):
            rows.append(row)
            right.append(next(number[parent] for parent in Path(path).parents if parent in number))
        activation = model.manifest.activation
    if not rows:
        raise InputError(f"{images}: no picture in it can be used; the first: {failures[0][1]}")
    found = fit_pack(opened, np.stack(rows), np.array(right), activation, precision=precision)
    found.pack.save(output)
    if as_json:
        emit({"path": str(output), **found.to_dict()})
    else:
        _print_fit(found, str(output))
    return finish(len(rows), failures, strict)


def _print_fit(found: Fit, output: str) -> None:
    from rich.table import Table

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    table = Table("label", "threshold", "fitted on", "held out", "answered", "precision", "recall")
    for one in found.figures:
        figures = (one.fitted_on, one.pictures, one.answered)
        table.add_row(
            one.label, f"{one.threshold:.3g}", *map(str, figures), share(one.precision), share(one.recall)
        )
    screen = console()
    screen.print(table)
    screen.print(
        f"held out: {share(found.right)} right, {share(found.answered)} answered; without thresholds {share(found.right_before)} "
        f"right. Calibration error of the scores: {found.calibration_error:.3f}"
    )
    screen.print(output)
