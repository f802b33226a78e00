"""`edgeclip evaluate detect|regions`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeclip.cli.common import console, finish
from edgeclip.cli.evaluate_options import (
    data_options,
    facts_of,
    failed,
    open_annotations,
    pack_of,
    percent,
    report_to,
    watched,
    write_json,
)

if TYPE_CHECKING:
    from edgeclip.evaluate.annotations import Annotations
    from edgeclip.evaluate.average_precision import Precision
    from edgeclip.evaluate.detect import Accuracy

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


@command.command(epilog=DETECT_EXAMPLES)
@data_options
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
    whole, annotations, split = open_annotations(coco, split, limit)
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
            pack = pack_of(model.make_prompts, annotations, source, template)
            begun = time.perf_counter()
            run = detect_all(model, annotations, images, pack, settings, watched("detect", as_json))
            seconds = time.perf_counter() - begun
            facts |= {**facts_of(model, pack), **asdict(settings), "seconds": round(seconds, 3)}
    if detections:
        write_json(detections, run.found.to_coco())
    pictures, failures = len(annotations.images), list(run.failures)
    if len(failures) == pictures:
        return finish(0, failures, strict)
    report = precision_of(annotations, run.found)
    report_to({**facts, **failed(failures), **report.to_dict()}, output, as_json)
    if not as_json:
        _print_precision(report, annotations)
    return finish(pictures - len(failures), failures, strict)


@command.command(epilog=REGIONS_EXAMPLES)
@data_options
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
    _, annotations, split = open_annotations(coco, split, limit)
    with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
        pack = pack_of(model.make_labels, annotations, source, template)
        assert pack is not None
        found = classify_all(model, annotations, images, pack, batch_size, watched("regions", as_json))
        facts = {"annotations": str(coco), "split": split, **facts_of(model, pack)}
    failures = list(found.failures)
    if found.boxes == 0:
        return finish(0, failures, strict)
    report_to({**facts, **failed(failures), **found.to_dict()}, output, as_json)
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


def _print_precision(report: Precision, annotations: Annotations) -> None:
    from rich.table import Table

    table = Table("", "classes", "boxes", "AP", "AP50")
    every = [one for one in report.per_class if one.ap is not None]
    rows = [("all", len(every), report.boxes, report.ap, report.ap50)]
    rows += [(group.name, group.classes, group.boxes, group.ap, group.ap50) for group in report.groups]
    for name, classes, boxes, ap, ap50 in rows:
        table.add_row(name, str(classes), str(boxes), percent(ap), percent(ap50))
    screen = console()
    screen.print(table)
    sizes = (
        ("AP75", report.ap75),
        ("small", report.ap_small),
        ("medium", report.ap_medium),
        ("large", report.ap_large),
    )
    recalls = tuple((f"AR {most}", value) for most, value in report.ar.items())
    screen.print(", ".join(f"{name} {percent(value)}" for name, value in (*sizes, *recalls)))
    if report.ap50_interval:
        low, high = report.ap50_interval
        screen.print(f"AP50 lies within {percent(low)} to {percent(high)} for 95 % of draws of pictures")
    rules = "LVIS" if annotations.lvis else "COCO"
    screen.print(f"{report.pictures} pictures, {report.detections} detections judged, {rules}'s rules")


def _print_accuracy(found: Accuracy) -> None:
    from rich.table import Table

    table = Table("", "mean over classes", "of boxes")
    table.add_row("all", percent(found.mean_per_class), percent(found.of_boxes))
    for group, share in found.groups.items():
        table.add_row(group, percent(share), "")
    screen = console()
    screen.print(table)
    screen.print(f"{found.pictures} pictures, {found.boxes} boxes named")
