"""`edgeclip embed`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.boxes import boxes_option, read_boxes, with_boxes
from edgeclip.cli.common import (
    Failures,
    answers,
    emit,
    find_pictures,
    finish,
    json_lines_option,
    model_options,
    strict_option,
)
from edgeclip.errors import EdgeClipError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from edgeclip.runtime.codecs.kinds import Array
    from edgeclip.runtime.model import Model, Vectors

EXAMPLES = """\b
Examples:
  edgeclip embed photos/ -o photos.npz                 arrays `embeddings` (N, D), `items`, `model_id`, `codec`
  edgeclip embed photos/ -b mine/ --codec int8 -o photos.npz    as the bundle's codec stores them
  edgeclip embed --boxes boxes.jsonl -b regions/ -o regions.npz        regions of pictures, array `boxes` (N, 4) beside them
  edgeclip embed --text "a cat" --text "a dog" --json  one JSON object a line
"""


@click.command(epilog=EXAMPLES)
@click.argument("pictures", nargs=-1)
@click.option("--text", multiple=True, help="A text to embed instead of pictures; repeat for more.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write: .npz (vectors and names) or .npy (vectors only).",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Pictures per call of the engine.",
)
@click.option(
    "--codec",
    help="Write codes instead of vectors: fp16, int8, bits or d256 (truncated), as `edgeclip codecs` fitted them.",
)
@boxes_option
@model_options
@strict_option
@json_lines_option
def command(
    pictures: tuple[str, ...],
    text: tuple[str, ...],
    output: Path | None,
    batch_size: int,
    codec: str | None,
    boxes_file: Path | None,
    bundle: str,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> int:
    """Turn pictures, regions or texts into unit vectors.

    PICTURES are files, folders (searched with all their subfolders) and globs; with --boxes its file names them. With --codec they are stored smaller; queries against
    such codes stay vectors.
    """
    import edgeclip

    if sum(map(bool, (pictures, text, boxes_file))) != 1:
        raise click.UsageError("Pass either pictures, --text or --boxes FILE.")
    if output is None and not as_json:
        raise click.UsageError("Where to? Pass -o FILE.npz or --json.")
    if output is not None and output.suffix not in (".npz", ".npy"):
        raise InputError(f"-o {output}: expected a name that ends in .npz or .npy.")
    items: list[str] | list[Path] = list(text)
    failures: Failures = []
    if pictures:
        items, failures = find_pictures(pictures, as_json)
    boxes: list[list[Any]] = []
    if boxes_file is not None:
        items, boxes = read_boxes(boxes_file)
    names: list[str] = []
    places: list[Any] = []  # the box of each row
    rows: list[Array] = []
    done = 0
    with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
        coded = model.codecs.codec(codec, "text" if text else "image") if codec else None
        found = _vectors(model, text, items, boxes, batch_size)
        for item, (own, vectors) in answers(items, found, failures, "embed", as_json):
            coded_rows = list(vectors if coded is None or not len(vectors) else coded.encode(vectors))
            done += 1
            names += [item] * len(coded_rows)
            rows += coded_rows
            places += own or []
            if as_json and own is not None:
                emit({"path": item, "boxes": own, "embeddings": [row.tolist() for row in coded_rows]})
            elif as_json:
                emit({"text" if text else "path": item, "embedding": coded_rows[0].tolist()})
        model_id = model.manifest.model_id
    if output is not None and rows:
        facts = {"boxes": places} if boxes_file else {}
        _save(output, rows, items=names, model_id=model_id, codec=codec or "", **facts)
        click.echo(f"{output}: {len(rows)} vectors of width {len(rows[0])}", err=True)
    return finish(done, failures, strict)


def _vectors(
    model: Model, texts: tuple[str, ...], items: Sequence[Any], boxes: list[list[Any]], batch_size: int
) -> Iterator[tuple[list[Any] | None, Vectors] | EdgeClipError]:
    """(boxes, their (R, D) vectors) of each picture, (None, (1, D)) where there are no boxes, or its error."""
    if boxes:
        yield from with_boxes(boxes, model.embed_regions_each(items, boxes, batch_size=batch_size))
        return
    found: Iterable[Vectors | EdgeClipError] = (
        model.embed_texts(texts) if texts else model.embed_each(items, batch_size=batch_size)
    )
    for vector in found:
        yield vector if isinstance(vector, EdgeClipError) else (None, vector[None])


def _save(output: Path, rows: list[Array], **facts: Any) -> None:
    import numpy as np

    from edgeclip.files import write_file

    buffer = io.BytesIO()
    if output.suffix == ".npy":
        np.save(buffer, np.stack(rows))
    else:
        arrays: dict[str, Any] = {name: np.array(fact) for name, fact in facts.items()}
        np.savez(buffer, embeddings=np.stack(rows), **arrays)
    write_file(output, buffer.getvalue())
