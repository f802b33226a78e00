"""`edgeclip embed`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    from edgeclip.runtime.codecs.kinds import Array
    from edgeclip.runtime.model import Vectors

EXAMPLES = """\b
Examples:
  edgeclip embed photos/ -o photos.npz                 arrays `embeddings` (N, D), `items`, `model_id`, `codec`
  edgeclip embed photos/ -b mine/ --codec int8 -o photos.npz    as the bundle's codec stores them
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
@model_options
@strict_option
@json_lines_option
def command(
    pictures: tuple[str, ...],
    text: tuple[str, ...],
    output: Path | None,
    batch_size: int,
    codec: str | None,
    bundle: str,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> int:
    """Turn pictures or texts into unit vectors.

    PICTURES are files, folders (searched with all their subfolders) and globs. With --codec they are stored smaller; queries against
    such codes stay vectors.
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
    rows: list[Array] = []
    with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
        coded = model.codecs.codec(codec, "text" if text else "image") if codec else None
        vectors: Iterable[Vectors | edgeclip.EdgeClipError] = (
            model.embed_texts(text) if text else model.embed_each(items, batch_size=batch_size)
        )
        for item, vector in answers(items, vectors, failures, "embed", as_json):
            names.append(item)
            rows.append(vector if coded is None else coded.encode(vector[None])[0])
            if as_json:
                emit({"text" if text else "path": item, "embedding": rows[-1].tolist()})
        model_id = model.manifest.model_id
    if output is not None and rows:
        _save(output, rows, items=names, model_id=model_id, codec=codec or "")
        click.echo(f"{output}: {len(rows)} vectors of width {len(rows[0])}", err=True)
    return finish(len(rows), failures, strict)


def _save(output: Path, rows: list[Array], **facts: str | list[str]) -> None:
    import numpy as np

    from edgeclip.files import write_file

    buffer = io.BytesIO()
    if output.suffix == ".npy":
        np.save(buffer, np.stack(rows))
    else:
        arrays: dict[str, Any] = {name: np.array(fact) for name, fact in facts.items()}
        np.savez(buffer, embeddings=np.stack(rows), **arrays)
    write_file(output, buffer.getvalue())
