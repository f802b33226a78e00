"""What `edgeclip evaluate detect` and `regions` share: the options of data, texts for categories, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeclip.cli.common import emit, json_option, model_options, parse_labels, strict_option, tracked
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.evaluate.annotations import Annotations
    from edgeclip.runtime.labels import LabelPack
    from edgeclip.runtime.model import Model

F = TypeVar("F", bound=Callable[..., Any])


def data_options(command: F) -> F:
    """`--coco`, `--images`, `--labels-from`, `--template`, `--split`, `--limit`, `-o`, and what every verb with a model has."""
    found = command
    for option in (
        json_option,
        strict_option,
        model_options,
        click.option(
            "-o",
            "--output",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write the report to this JSON file.",
        ),
        click.option("--limit", type=click.IntRange(min=1), help="Only so many pictures, the first ones."),
        click.option(
            "--split",
            type=click.Choice(["ov-coco", "lvis", "none"]),
            help="Group classes: base and novel, or by frequency. Default: lvis for annotations of LVIS.",
        ),
        click.option(
            "--template", multiple=True, help="Prompt with a {} for the name; repeated ones are averaged."
        ),
        click.option(
            "--labels-from",
            "source",
            default="categories",
            show_default=True,
            metavar="categories | baked | @FILE",
            help="What to ask for: the categories' names, the labels baked into the bundle, or a text a line in the order of the "
            "categories' ids.",
        ),
        click.option(
            "--images",
            type=click.Path(path_type=Path),
            help="The folder of the pictures.",
        ),
        click.option(
            "--coco",
            type=click.Path(dir_okay=False, path_type=Path),
            required=True,
            help="Annotations: COCO instances or LVIS v1.",
        ),
    ):
        found = option(found)
    return found


def open_annotations(
    coco: Path, split: str | None, limit: int | None
) -> tuple[Annotations, Annotations, str]:
    """As they are, those to judge by, and the name of their split."""
    from edgeclip.evaluate.annotations import read_annotations

    whole = read_annotations(coco)
    name = split or ("lvis" if whole.lvis else "none")
    annotations = whole.split(name)
    return whole, annotations.first(limit) if limit else annotations, name


def pack_of(
    make: Callable[..., LabelPack], annotations: Annotations, source: str, template: Sequence[str]
) -> LabelPack | None:
    """A vector for each category; None: the baked labels."""
    from edgeclip.evaluate.detect import texts_of

    if source == "baked":
        if template:
            raise click.UsageError(
                "--labels-from baked: baked labels bring their templates; drop --template."
            )
        return None
    if source != "categories" and not source.startswith("@"):
        raise InputError(f"--labels-from {source}: expected categories, baked, or @FILE with a text a line.")
    lines = parse_labels(source, ()) if source.startswith("@") else None
    return make(texts_of(annotations, lines), templates=template or None)


def facts_of(model: Model, pack: LabelPack | None) -> dict[str, Any]:
    """What a report says of the model."""
    return {
        "bundle": model.manifest.name,
        "model_id": model.manifest.model_id,
        "towers": model.info().towers,
        "templates": list(pack.templates) if pack else None,
    }


def watched(what: str, quiet: bool) -> Callable[[Iterable[Any], int], Iterable[Any]]:
    """Shows progress under this name."""
    return lambda items, count: tracked(items, count, what, quiet)


def failed(failures: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What a report says of pictures that could not be used."""
    return {"failed": [{"path": path, "error": reason} for path, reason in failures]}


def report_to(record: dict[str, Any], output: Path | None, as_json: bool) -> None:
    """Write it where it is wanted."""
    if output:
        write_json(output, record)
    if as_json:
        emit(record)


def write_json(path: Path, value: Any) -> None:
    """One JSON value as a file."""
    from edgeclip.files import write_file

    write_file(path, json.dumps(value, ensure_ascii=False) + "\n")


def percent(value: float | None) -> str:
    """One decimal; - for what could not be measured."""
    return "-" if value is None else f"{100 * value:.1f}"
