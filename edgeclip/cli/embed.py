"""`edgeclip embed`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgeclip.runtime.model import Vectors

EXAMPLES = """\b
Examples:
  edgeclip embed photos/ -o photos.npz                 arrays `embeddings` (N, D) and `items` (N,)
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
@model_options
@strict_option
@json_lines_option
def command(
    pictures: tuple[str, ...],
    text: tuple[str, ...],
    output: Path | None,
    batch_size: int,
    bundle: str,
    engine: str | None,
    threads: int | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Turn pictures or texts into unit vectors.

    PICTURES are files, folders (searched with all their subfolders) and globs.
    """
    import edgeclip

    if bool(pictures) == bool(text):
        raise click.UsageError("Pass either pictures or --text.")
    if output is None and not as_json:
        raise click.UsageError("Where to? Pass -o FILE.npz or --json.")
    if output is not None and output.suffix not in (".npz", ".npy"):
        raise InputError(f"-o {output}: expected a name that ends in .npz or .npy.")
    items: list[str] | list[Path] = list(text)
    failures: Failures = []
    if pictures:
        items, failures = find_pictures(pictures, as_json)
    names: list[str] = []
    rows: list[Vectors] = []
    with edgeclip.load(bundle, engine=engine, threads=threads) as model:
        vectors: Iterable[Vectors | edgeclip.EdgeClipError] = (
            model.embed_texts(text) if text else model.embed_each(items, batch_size=batch_size)
        )
        for item, vector in answers(items, vectors, failures, "embed", as_json):
            names.append(item)
            rows.append(vector)
            if as_json:
                emit({"text" if text else "path": item, "embedding": vector.tolist()})
    if output is not None and rows:
        _save(output, names, rows)
        click.echo(f"{output}: {len(rows)} vectors of width {len(rows[0])}", err=True)
    return finish(len(rows), failures, strict)


def _save(output: Path, names: list[str], rows: list[Vectors]) -> None:
    import numpy as np

    from edgeclip.files import write_file

    buffer = io.BytesIO()
    if output.suffix == ".npy":
        np.save(buffer, np.stack(rows))
    else:
        np.savez(buffer, embeddings=np.stack(rows), items=np.array(names))
    write_file(output, buffer.getvalue())
