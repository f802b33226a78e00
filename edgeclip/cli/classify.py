"""`edgeclip classify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeclip.cli.boxes import boxes_option, read_boxes, with_boxes
from edgeclip.cli.common import (
    Failures,
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeclip import Classification, InputError
    from edgeclip.runtime.model import Labels, Model

EXAMPLES = """\b
Examples:
  edgeclip classify cat.png --labels 'a cat,a dog,a bicycle'
  edgeclip classify photos/ '*.jpg' --labels @labels.txt --top-k 3 --json
  edgeclip classify frame.jpg -b clip-b32/ --pack pets.labels     no text tower, no tokenizer
  edgeclip classify frame.jpg -b shop/                            by the labels that `edgeclip bake` put in
  edgeclip classify --boxes boxes.jsonl -b regions/ --labels 'a cat,a dog'     regions of pictures
  edgeclip classify photos/ -b clip-b32/ --captions words.index   no labels: words of captions near the picture
  edgeclip classify photos/ -b clip-b32/ --label 'a cat' --require tensorrt-rtx   on that engine, or not at all
  edgeclip classify photos/ -b clip-b32/ --label 'a cat' --engine tensorrt,onnxruntime-cuda
"""


@click.command(epilog=EXAMPLES)
@click.argument("pictures", nargs=-1)
@click.option("--labels", help="What to choose from: 'a cat,a dog', or @FILE with one label a line.")
@click.option("--label", multiple=True, help="One label; repeat for more (for labels with commas).")
@click.option(
    "--pack",
    type=click.Path(exists=True, dir_okay=False),
    help="A label pack made by `edgeclip labels make`, instead of labels.",
)
@click.option(
    "--captions",
    type=click.Path(exists=True, file_okay=False),
    metavar="INDEX",
    help="No labels: what captions near each picture name. An index made with `edgeclip index build --captions`.",
)
@click.option("--template", multiple=True, help="Prompt with a {} for the label; repeated ones are averaged.")
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How many labels to show for a picture.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Answer 'none of these' when the best score is below. Default: the pack's own, or none.",
)
@boxes_option
@model_options
@strict_option
@json_lines_option
def command(
    pictures: tuple[str, ...],
    labels: str | None,
    label: tuple[str, ...],
    pack: str | None,
    captions: str | None,
    template: tuple[str, ...],
    top_k: int,
    threshold: float | None,
    boxes_file: Path | None,
    bundle: str,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> int:
    """Say which of your labels fits each picture (zero-shot).

    PICTURES are files, folders (searched with all their subfolders) and globs. With --boxes, its file names pictures and regions of
    them, and each region gets its label.
    """
    import edgeclip

    if bool(pictures) == bool(boxes_file):
        raise click.UsageError("Pass either pictures or --boxes FILE.")
    if pack and (labels or label or template):
        raise click.UsageError(
            "--pack brings its own labels and templates; drop --labels, --label and --template."
        )
    given = (labels or label or template) and not captions
    if captions and (labels or label or pack or boxes_file):
        raise click.UsageError("--captions finds its own labels; drop --labels, --label, --pack and --boxes.")
    wanted = edgeclip.LabelPack.open(pack) if pack else parse_labels(labels, label) if given else None
    if boxes_file is not None:
        return _regions(
            boxes_file, wanted, template, top_k, threshold, bundle, engine, threads, variants, strict, as_json
        )
    paths, failures = find_pictures(pictures, as_json)
    rows: list[tuple[str, Classification]] = []
    with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
        if wanted is None and not model.labels and not captions:
            parse_labels(None, ())  # says how to pass them
        if captions:
            results = _freely(model, paths, captions, template, top_k, threshold)
        else:
            results = model.classify_each(
                paths, wanted, templates=template or None, top_k=top_k, threshold=threshold
            )
        for path, result in answers(paths, results, failures, "classify", as_json):
            rows.append((path, result))
            if as_json:
                emit({"path": path, **result.to_dict()})
        used = model.info()
    if rows and not as_json:
        _print(rows, str(used))
    return finish(len(rows), failures, strict)


def _freely(
    model: Model,
    paths: Sequence[Path],
    captions: str,
    template: tuple[str, ...],
    top_k: int,
    threshold: float | None,
) -> Iterator[Classification | InputError]:
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.index.vocabulary_free import WORD, classify_freely_each

    with Index.open(captions) as index:
        yield from classify_freely_each(
            model, paths, index, templates=template or WORD, top_k=top_k, threshold=threshold
        )


def _regions(
    file: Path,
    labels: Labels | None,
    template: tuple[str, ...],
    top_k: int,
    threshold: float | None,
    bundle: str,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> int:
    import edgeclip

    paths, boxes = read_boxes(file)
    failures: Failures = []
    rows: list[tuple[str, Classification]] = []
    done = 0
    with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
        if labels is None and not model.labels:
            parse_labels(None, ())  # says how to pass them
        results = model.classify_regions_each(
            paths, boxes, labels, templates=template or None, top_k=top_k, threshold=threshold
        )
        for path, (own, found) in answers(paths, with_boxes(boxes, results), failures, "classify", as_json):
            done += 1
            rows += [(f"{path} {i}", each) for i, each in enumerate(found)]
            if as_json:
                regions = [{"box": box, **each.to_dict()} for box, each in zip(own, found, strict=True)]
                emit({"path": path, "regions": regions})
        used = model.info()
    if rows and not as_json:
        _print(rows, str(used))
    return finish(done, failures, strict)


def _print(rows: Sequence[tuple[str, Classification]], used: str) -> None:
    from rich.table import Table

    table = Table("picture", "label", "score", "next")
    for path, result in rows:
        others = ", ".join(f"{name} {score:.2f}" for name, score in result.ranked() if name != result.label)
        table.add_row(path, result.label or "none of these", f"{result.score:.2f}", others)
    screen = console()
    screen.print(table)
    screen.print(used)
