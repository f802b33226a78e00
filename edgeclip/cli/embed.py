"""`edgeclip embed`."""

from __future__ import annotations

import io
from pathlib import Path

import click

from edgeclip.cli.common import (
    emit,
    find_pictures,
    finish,
    json_option,
    model_options,
    strict_option,
    tracked,
)
from edgeclip.errors import InputError

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
    help=".npz (with the names) or .npy (vectors only).",
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
@json_option
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
    """Turn pictures or texts into unit vectors."""
    import numpy as np

    import edgeclip
    from edgeclip.files import write_file

    if bool(pictures) == bool(text):
        raise click.UsageError("pass pictures, or --text, one of the two.")
    if output is None and not as_json:
        raise click.UsageError("where to? Pass -o FILE.npz or --json.")
    if output is not None and output.suffix not in (".npz", ".npy"):
        raise InputError(f"-o {output}: expected a name that ends in .npz or .npy.")
    items = list(text) or [str(path) for path in find_pictures(pictures)]
    failures: list[tuple[str, str]] = []
    names: list[str] = []
    rows = []
    with edgeclip.load(bundle, engine=engine, threads=threads) as model:
        vectors = (
            iter(model.embed_texts(list(text))) if text else model.embed_each(items, batch_size=batch_size)
        )
        for item, vector in tracked(zip(items, vectors, strict=True), len(items), "embed", as_json):
            if isinstance(vector, edgeclip.EdgeClipError):
                failures.append((item, str(vector)))
                if as_json:
                    emit({"path": item, "error": str(vector)})
                continue
            if as_json:
                emit({"text" if text else "path": item, "embedding": [float(value) for value in vector]})
            names.append(item)
            rows.append(vector)
    if output is not None and rows:
        buffer = io.BytesIO()
        if output.suffix == ".npy":
            np.save(buffer, np.stack(rows))
        else:
            np.savez(buffer, embeddings=np.stack(rows), items=np.array(names))
        write_file(output, buffer.getvalue())
        click.echo(f"{output}: {len(rows)} vectors of width {rows[0].shape[0]}", err=True)
    return finish(len(rows), failures, strict)
