"""`edgeclip detect`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import (
    answers,
    console,
    emit,
    find_pictures,
    finish,
    json_lines_option,
    model_options,
    parse_labels,
    strict_option,
)
from edgeclip.cli.detect_stream import StreamOptions, run_stream, stream_options
from edgeclip.cli.live_prompts import parse_prompts
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip import Detections, Example, LabelPack, Model, Tiling

EXAMPLES = """\b
Examples:
  edgeclip detect street.jpg --prompts 'a face, a red cup'
  edgeclip detect street.jpg --prompts '[a face [an eye, a nose], a cup]'     eyes and noses within faces
  edgeclip detect photos/ -b owlv2/ --labels @labels.txt --threshold 0.2 --threshold 'a cup=0.4' --json
  edgeclip detect shelf.jpg -b owlv2/ --example 'can.jpg:40,30,220,310=this can' --save found/
  edgeclip detect drone.jpg -b owlv2/ --label 'a car' --tile 640:0.2
  edgeclip detect photos/ -b owlv2/ --prompts 'a cat, a dog' --format coco -o found.json
  edgeclip detect --source 0 --prompts 'a face' --show --track
  edgeclip detect --source rtsp://camera/1 --prompts 'a person' --jsonl - --save seen.mp4
"""


@click.command(epilog=EXAMPLES)
@click.argument("pictures", nargs=-1)
@click.option(
    "--prompts", help="What to look for: 'a face, a cup', or one within another: '[a face [an eye], a cup]'."
)
@click.option("--labels", help="What to look for: 'a face,a cup', or @FILE with one label a line.")
@click.option("--label", multiple=True, help="One label; repeat for more (for labels with commas).")
@click.option(
    "--pack",
    type=click.Path(exists=True, dir_okay=False),
    help="A label pack made by `edgeclip labels make`, instead of labels.",
)
@click.option(
    "--example",
    "examples",
    multiple=True,
    metavar="PICTURE[:X1,Y1,X2,Y2][=LABEL]",
    help="Look for what is in the box of this picture, in pixels; repeat for more, which are averaged under one label.",
)
@click.option("--template", multiple=True, help="Prompt with a {} for the label; repeated ones are averaged.")
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    metavar="T | LABEL=T",
    help="Smallest score, 0 to 1, of all or of one label; repeat for more. Default: the pack's own, or the model's.",
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
    "--tile", metavar="SIZE[:OVERLAP]", help="Look at large pictures in tiles of SIZE pixels as well."
)
@click.option(
    "--max",
    "most",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="How many to find in a picture.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Pictures or tiles at once.",
)
@click.option(
    "--format", "form", type=click.Choice(["coco", "yolo"]), help="Write the detections to -o in this form."
)
@click.option(
    "-o", "--output", metavar="PATH", help="For --format: a JSON file (coco; - is stdout) or a folder (yolo)."
)
@stream_options
@model_options
@strict_option
@json_lines_option
def command(
    pictures: tuple[str, ...],
    prompts: str | None,
    labels: str | None,
    label: tuple[str, ...],
    pack: str | None,
    examples: tuple[str, ...],
    template: tuple[str, ...],
    thresholds: tuple[str, ...],
    nms_iou: float | None,
    class_agnostic: bool | None,
    tile: str | None,
    most: int,
    batch_size: int,
    form: str | None,
    output: str | None,
    stream: StreamOptions,
    bundle: str,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> int:
    """Find what you name, or show, in pictures and streams.

    PICTURES are files, folders (searched with all their subfolders) and globs. For video and cameras, pass --source.
    """
    import edgeclip

    _check(pictures, stream, form, output, as_json, pack, bool(prompts or labels or label or template))
    wanted = _wanted(prompts, labels, label, pack)
    shown = [parse_example(value) for value in examples]
    options: dict[str, Any] = {
        "nms_iou": nms_iou,
        "class_agnostic": class_agnostic,
        "max_detections": most,
        "templates": template or None,
        "tile": None if tile is None else _tiling(tile),
    }
    with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
        if wanted is None and not shown and not model.labels and stream.watch is None:
            raise InputError(
                "nothing to look for. Pass --prompts 'a face, a cup', --label 'a face' once for each, --pack, or --example."
            )
        options["threshold"] = _threshold(thresholds, _names(wanted, shown, model))
        if stream.sources:
            return run_stream(model, wanted, stream, examples=shown, parse=parse_prompts, **options)
        return _pictures(
            model, pictures, wanted, shown, options, batch_size, stream, form, output, strict, as_json
        )


def _pictures(
    model: Model,
    pictures: Sequence[str],
    wanted: Any,
    examples: Sequence[Example],
    options: dict[str, Any],
    batch_size: int,
    stream: StreamOptions,
    form: str | None,
    output: str | None,
    strict: bool,
    as_json: bool,
) -> int:
    from edgeclip.cli.detect_output import Outputs

    quiet = as_json or stream.jsonl == "-"  # a picture that failed is a line on stdout too
    paths, failures = find_pictures(pictures, quiet)
    results = model.detect_each(paths, wanted, examples=examples, batch_size=batch_size, **options)
    rows: list[tuple[str, Detections]] = []
    with Outputs(stream.save, stream.jsonl, form, output) as outputs:
        for path, found in answers(paths, results, failures, "detect", quiet):
            rows.append((path, found))
            outputs.take(path, found)
            if as_json:
                emit({"path": path, **found.to_dict()})
        outputs.finish()
    if rows and not quiet and output != "-":
        _print(rows, str(model.info()))
    return finish(len(rows), failures, strict)


def _check(
    pictures: Sequence[str],
    stream: StreamOptions,
    form: str | None,
    output: str | None,
    as_json: bool,
    pack: str | None,
    texts: bool,
) -> None:
    """Refuse options that do not go together."""
    if bool(pictures) == bool(stream.sources):
        raise click.UsageError("Expected PICTURES or --source, and not both.")
    if any("://" in picture for picture in pictures):  # not repeated: it may hold a password
        raise click.UsageError("PICTURES are files, folders and globs; for an address, pass --source.")
    if pack and texts:
        raise click.UsageError(
            "--pack brings its own labels and templates; drop --prompts, --labels, --label and --template."
        )
    if (form is None) != (output is None):
        raise click.UsageError("--format and -o go together: the form, and where to write it.")
    if stream.sources and (form or as_json):
        raise click.UsageError("--format and --json are for PICTURES; of a stream pass --jsonl.")
    if (as_json, stream.jsonl == "-", output == "-").count(True) > 1:
        raise click.UsageError("--json, --jsonl - and -o - all go to stdout; keep one.")
    if form == "yolo" and output == "-":
        raise click.UsageError("--format yolo writes a file for each picture; pass -o FOLDER.")
    if pictures and (unused := stream.of_streams_only()):
        raise click.UsageError(f"{', '.join(unused)}: for --source; pass the folder or file there.")
    if pictures and stream.save and Path(stream.save).suffix and not Path(stream.save).is_dir():
        raise click.UsageError(
            f"--save {stream.save}: expected a folder for the annotated copies of PICTURES; a video is made of --source."
        )


def _wanted(
    prompts: str | None, labels: str | None, label: Sequence[str], pack: str | None
) -> LabelPack | list[str] | str | None:
    """What `Model.detect` takes for labels; None: nothing was said."""
    import edgeclip

    if pack:
        return edgeclip.LabelPack.open(pack)
    if prompts is not None:
        found: str | list[str] = parse_prompts(prompts)
        if isinstance(found, str) and (labels or label):
            raise click.UsageError("--prompts in [brackets] stand alone; put --labels and --label into them.")
        return (
            [*found, *(parse_labels(labels, label) if labels or label else [])]
            if isinstance(found, list)
            else found
        )
    return parse_labels(labels, label) if labels or label else None


def parse_example(value: str) -> Example:
    """PICTURE[:X1,Y1,X2,Y2][=LABEL].

    Raises:
        InputError: a box that is none; whether the picture can be read shows later.
    """
    import edgeclip

    if Path(value).is_file():  # its name may hold = or :
        return edgeclip.Example(value)
    rest, equals, label = value.rpartition("=")
    rest, label = (rest, label) if equals else (value, "")
    number = r"-?\d+(?:\.\d+)?"
    match = re.fullmatch(rf"(.+?)(?::({number}(?:,{number}){{3}}))?", rest)
    if match is None or (match[2] is None and re.search(r":[\d.,\s-]*$", rest)):
        raise InputError(
            f"--example {value!r}: expected PICTURE:X1,Y1,X2,Y2=LABEL, e.g. can.jpg:40,30,220,310=a can."
        )
    box = tuple(float(part) for part in match[2].split(",")) if match[2] else None
    found = edgeclip.Example(match[1], box, label.strip() or "example 1")
    found.check(f"--example {value!r}")
    return found


def _tiling(value: str) -> Tiling:
    import edgeclip

    size, colon, overlap = value.partition(":")
    try:
        return edgeclip.Tiling(int(size), float(overlap)) if colon else edgeclip.Tiling(int(size))
    except ValueError as error:
        raise InputError(f"--tile {value!r}: expected pixels and a share, e.g. 640 or 640:0.2.") from error


def _names(wanted: Any, examples: Sequence[Example], model: Model) -> list[str]:
    """Every label that is looked for."""
    from edgeclip.runtime.detect.prompt_tree import parse_prompts as parse_tree

    if isinstance(wanted, str):
        names = list(parse_tree(wanted).labels)
    elif wanted is None:
        names = [] if examples else list(model.labels)
    else:
        names = list(getattr(wanted, "labels", wanted))
    return [*names, *(example.label for example in examples)]


def _threshold(values: Sequence[str], names: Sequence[str]) -> float | dict[str, float] | None:
    """One for all, or by label; a label's own wins over the one for all."""
    every, own = None, {}
    for value in values:
        label, equals, number = value.rpartition("=")
        try:
            share = float(number)
        except ValueError as error:
            raise InputError(
                f"--threshold {value!r}: expected a score of 0 to 1, or LABEL=SCORE, e.g. 'a cup=0.4'."
            ) from error
        if equals:
            own[label.strip()] = share
        else:
            every = share
    if not own:
        return every
    return own if every is None else {**dict.fromkeys(names, every), **own}


def _print(rows: Sequence[tuple[str, Detections]], used: str) -> None:
    from rich.table import Table

    table = Table("picture", "label", "score", "box (x1 y1 x2 y2)", "within")
    for path, found in rows:
        if not len(found):
            table.add_row(path, "nothing", "", "", "")
        for i, name in enumerate(found.names):
            parent = -1 if found.parents is None else int(found.parents[i])
            box = " ".join(f"{x:.0f}" for x in found.boxes[i])
            inside = "" if parent < 0 else found.names[parent]
            table.add_row(path, name, f"{found.scores[i]:.2f}", box, inside)
    if all(found.parents is None for _, found in rows):
        table.columns.pop()
    screen = console()
    screen.print(table)
    screen.print(used)
