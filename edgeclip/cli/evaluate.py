"""`edgeclip evaluate detect|regions`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from edgeclip.cli.common import (
    console,
    emit,
    finish,
    json_option,
    model_options,
    parse_labels,
    strict_option,
    tracked,
)
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.evaluate.annotations import Annotations
    from edgeclip.evaluate.average_precision import Precision
    from edgeclip.evaluate.detect import Accuracy
    from edgeclip.runtime.labels import LabelPack
    from edgeclip.runtime.model import Model

F = TypeVar("F", bound=Callable[..., Any])
_TYPED = ParameterSource.COMMANDLINE

DETECT_EXAMPLES = """\b
Examples:
  edgeclip evaluate detect -b owlv2/ --coco instances_val2017.json --images val2017/
  edgeclip evaluate detect -b owlv2/ --coco instances_val2017.json --images val2017/ --split ov-coco -o report.json
  edgeclip evaluate detect -b owlv2/ --coco lvis_v1_val.json --images coco/ --template 'a photo of a {}'
  edgeclip evaluate detect --coco instances_val2017.json --predictions found.json --json
"""

REGIONS_EXAMPLES = """\b
Examples:
  edgeclip evaluate regions -b regions-b16/ --coco instances_val2017.json --images val2017/
  edgeclip evaluate regions -b regions-b16/ --coco lvis_v1_val.json --images coco/ --limit 500 --json
"""


@click.group(epilog=DETECT_EXAMPLES + REGIONS_EXAMPLES.replace("\b\nExamples:\n", ""))
def command() -> None:
    """Measure accuracy on annotated pictures.

    Annotations are COCO instances or LVIS v1, which is judged by its own rules.
    """


def _data_options(command: F) -> F:
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


@command.command(epilog=DETECT_EXAMPLES)
@_data_options
@click.option(
    "--predictions",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Judge this COCO file of results; no model runs.",
)
@click.option(
    "--detections",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what was found to this file, as COCO results.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.001,
    show_default=True,
    help="Smallest score. Average precision wants the weak ones too.",
)
@click.option(
    "--nms-iou",
    type=click.FloatRange(0, 1),
    help="Of two boxes that overlap by more, the better one stays; 1 keeps all. Default: the model's.",
)
@click.option(
    "--class-agnostic/--per-class",
    default=None,
    help="Whether a box also covers those of other labels. Default: as the model says.",
)
@click.option(
    "--max", "most", type=click.IntRange(min=1), help="Detections of a picture. Default: 100, for LVIS 300."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Pictures at once."
)
def detect(
    coco: Path,
    images: Path | None,
    source: str,
    template: tuple[str, ...],
    split: str | None,
    limit: int | None,
    output: Path | None,
    predictions: Path | None,
    detections: Path | None,
    threshold: float,
    nms_iou: float | None,
    class_agnostic: bool | None,
    most: int | None,
    batch_size: int,
    bundle: str,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> int:
    """Average precision of a detector, as COCO or LVIS define it."""
    from edgeclip.evaluate.average_precision import precision_of, read_found
    from edgeclip.evaluate.detect import Run, Settings, detect_all

    _check(images, predictions, detections, template, source)
    whole, annotations, split = _annotations(coco, split, limit)
    facts: dict[str, Any] = {"annotations": str(coco), "split": split}
    if images is None:
        assert predictions is not None
        run = Run(read_found(predictions, whole).among(annotations), ())
        facts["predictions"] = str(predictions)
    else:
        import edgeclip

        settings = Settings(
            threshold, nms_iou, class_agnostic, most or (300 if annotations.lvis else 100), batch_size
        )
        with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
            pack = _pack(model.make_prompts, annotations, source, template)
            begun = time.perf_counter()
            run = detect_all(model, annotations, images, pack, settings, _watch("detect", as_json))
            seconds = time.perf_counter() - begun
            facts |= {**_facts(model, pack), **asdict(settings), "seconds": round(seconds, 3)}
    if detections:
        _write(detections, run.found.to_coco())
    pictures, failures = len(annotations.images), list(run.failures)
    if len(failures) == pictures:
        return finish(0, failures, strict)
    report = precision_of(annotations, run.found)
    _report({**facts, **_failed(failures), **report.to_dict()}, output, as_json)
    if not as_json:
        _print_precision(report, annotations)
    return finish(pictures - len(failures), failures, strict)


@command.command(epilog=REGIONS_EXAMPLES)
@_data_options
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Pictures at once."
)
def regions(
    coco: Path,
    images: Path | None,
    source: str,
    template: tuple[str, ...],
    split: str | None,
    limit: int | None,
    output: Path | None,
    batch_size: int,
    bundle: str,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> int:
    """How often a region encoder names a box that people drew.

    Given the true boxes: mean accuracy over classes, as region encoders are compared.
    """
    import edgeclip
    from edgeclip.evaluate.detect import classify_all

    if images is None:
        raise click.UsageError("Missing option '--images'.")
    if source == "baked":
        raise click.UsageError("--labels-from baked: expected categories or @FILE; boxes are named by texts.")
    _, annotations, split = _annotations(coco, split, limit)
    with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
        pack = _pack(model.make_labels, annotations, source, template)
        assert pack is not None
        found = classify_all(model, annotations, images, pack, batch_size, _watch("regions", as_json))
        facts = {"annotations": str(coco), "split": split, **_facts(model, pack)}
    failures = list(found.failures)
    if found.boxes == 0:
        return finish(0, failures, strict)
    _report({**facts, **_failed(failures), **found.to_dict()}, output, as_json)
    if not as_json:
        _print_accuracy(found)
    return finish(found.boxes, failures, strict)


def _check(
    images: Path | None,
    predictions: Path | None,
    detections: Path | None,
    template: Sequence[str],
    source: str,
) -> None:
    if (predictions is None) == (images is None):
        raise click.UsageError("Pass either --images, to run a model, or --predictions.")
    given = click.get_current_context().get_parameter_source("bundle")
    if predictions and (detections or template or source != "categories" or given is _TYPED):
        raise click.UsageError(
            "--predictions runs no model; drop --bundle, --detections, --template and --labels-from."
        )


def _annotations(coco: Path, split: str | None, limit: int | None) -> tuple[Annotations, Annotations, str]:
    """As they are, those to judge by, and the name of their split."""
    from edgeclip.evaluate.annotations import read_annotations

    whole = read_annotations(coco)
    name = split or ("lvis" if whole.lvis else "none")
    annotations = whole.split(name)
    return whole, annotations.first(limit) if limit else annotations, name


def _pack(
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


def _facts(model: Model, pack: LabelPack | None) -> dict[str, Any]:
    return {
        "bundle": model.manifest.name,
        "model_id": model.manifest.model_id,
        "towers": model.info().towers,
        "templates": list(pack.templates) if pack else None,
    }


def _watch(what: str, quiet: bool) -> Callable[[Iterable[Any], int], Iterable[Any]]:
    return lambda items, count: tracked(items, count, what, quiet)


def _failed(failures: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {"failed": [{"path": path, "error": reason} for path, reason in failures]}


def _report(record: dict[str, Any], output: Path | None, as_json: bool) -> None:
    if output:
        _write(output, record)
    if as_json:
        emit(record)


def _write(path: Path, value: Any) -> None:
    from edgeclip.files import write_file

    write_file(path, json.dumps(value, ensure_ascii=False) + "\n")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _print_precision(report: Precision, annotations: Annotations) -> None:
    from rich.table import Table

    table = Table("", "classes", "boxes", "AP", "AP50")
    every = [one for one in report.per_class if one.ap is not None]
    rows = [("all", len(every), report.boxes, report.ap, report.ap50)]
    rows += [(group.name, group.classes, group.boxes, group.ap, group.ap50) for group in report.groups]
    for name, classes, boxes, ap, ap50 in rows:
        table.add_row(name, str(classes), str(boxes), _percent(ap), _percent(ap50))
    screen = console()
    screen.print(table)
    sizes = (
        ("AP75", report.ap75),
        ("small", report.ap_small),
        ("medium", report.ap_medium),
        ("large", report.ap_large),
    )
    recalls = tuple((f"AR {most}", value) for most, value in report.ar.items())
    screen.print(", ".join(f"{name} {_percent(value)}" for name, value in (*sizes, *recalls)))
    if report.ap50_interval:
        low, high = report.ap50_interval
        screen.print(f"AP50 lies within {_percent(low)} to {_percent(high)} for 95 % of draws of pictures")
    rules = "LVIS" if annotations.lvis else "COCO"
    screen.print(f"{report.pictures} pictures, {report.detections} detections judged, {rules}'s rules")


def _print_accuracy(found: Accuracy) -> None:
    from rich.table import Table

    table = Table("", "mean over classes", "of boxes")
    table.add_row("all", _percent(found.mean_per_class), _percent(found.of_boxes))
    for group, share in found.groups.items():
        table.add_row(group, _percent(share), "")
    screen = console()
    screen.print(table)
    screen.print(f"{found.pictures} pictures, {found.boxes} boxes named")
