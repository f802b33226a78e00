"""`edgeclip codecs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import Failures, answers, console, emit, find_pictures, finish, json_option
from edgeclip.cli.export import need_export_extra
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from edgeclip.bundle import Bundle
    from edgeclip.runtime.codecs.kinds import Array, Kind

EXAMPLES = """\b
Examples:
  edgeclip codecs clip-b32/ -o clip-b32-small --images photos/ --texts queries.txt
  edgeclip codecs clip-b32/ -o clip-b32-small --vectors photos.npz --width 256 --width 64
  edgeclip embed photos/ -b clip-b32-small/ --codec bits -o photos.npz
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the bundle to make."
)
@click.option("--images", multiple=True, help="Pictures to fit to: a file, folder or glob; may be repeated.")
@click.option(
    "--vectors", type=click.Path(dir_okay=False, path_type=Path),
    help="Their vectors instead: an .npz file of `edgeclip embed`.",
)  # fmt: skip
@click.option(
    "--texts", type=click.Path(path_type=Path), help="File of texts that will ask for pictures, one a line."
)
@click.option(
    "--width", "widths", multiple=True, type=click.IntRange(min=1),
    help="Components that a truncated codec keeps; may be repeated. Default: a half, a quarter, an eighth.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads that embed.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at the output.")
@json_option
def command(
    bundle: str,
    output: Path,
    images: tuple[str, ...],
    vectors: Path | None,
    texts: Path | None,
    widths: tuple[int, ...],
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Fit small codes of embeddings, for retrieval, to your pictures.

    BUNDLE is a folder, a .zip of one, hf:ORG/NAME, or nano. The new bundle's vectors can be stored truncated, as fp16, as int8, or as
    bits. Every fourth vector is held out, and tells what each codec loses.
    """
    if bool(images) == bool(vectors):
        raise click.UsageError("Pass either --images or --vectors.")
    need_export_extra("fitting codecs into a bundle", torch=False)
    from edgeclip.bundle import open_bundle
    from edgeclip.export.codecs import add_codecs

    if output.exists() and not overwrite:
        raise InputError(
            f"{output}: already exists. Choose another place, or pass --overwrite to replace it."
        )
    opened = open_bundle(bundle)
    failures: Failures = []
    rows: dict[Kind, Array] = {}
    if vectors is not None:
        rows["image"] = read_vectors(vectors, opened)
    rows |= _embed(opened, images, texts, threads, failures)
    finish(1, failures, strict=False)  # says what was skipped, before a refusal of too few
    made, codecs = add_codecs(
        opened, output, rows, widths=widths or None, overwrite=overwrite, threads=threads
    )
    if as_json:
        emit({"path": str(made.root), "codecs": list(codecs.names), **codecs.measured})
    else:
        console().print(codec_table(codecs.measured))
        click.echo(f"{output}: codecs {', '.join(codecs.names)}", err=True)


def read_vectors(file: Path, bundle: Bundle) -> Array:
    """(N, D) float rows of an .npz file of `edgeclip embed`. Raises InputError if it is another file, or another model's."""
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as found:
            rows: Array = found["embeddings"]
            model_id = str(found["model_id"]) if "model_id" in found else bundle.manifest.model_id
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError) as error:
        raise InputError(
            f"--vectors {file}: cannot be read ({error}). Expected an .npz file of `edgeclip embed PICTURES -o FILE.npz`."
        ) from error
    if model_id != bundle.manifest.model_id:
        raise InputError(
            f"--vectors {file}: made by model {model_id[:12]}..., the bundle is {bundle.manifest.model_id[:12]}.... "
            "Embed the pictures again with this bundle."
        )
    return rows


def codec_table(measured: Mapping[str, Any]) -> Table:
    """What each codec needs and loses, as `fit.measure` gives it."""
    from rich.table import Table

    kinds = {"image": "pictures asking", "text": "texts asking"}
    asking = [kind for kind in kinds if kind in measured["rows"][0]["recall"]]
    title = f"recall@{measured['k']} of an exact search among {measured['documents']} vectors held out"
    table = Table("codec", "bytes a vector", *(kinds[kind] for kind in asking), title=title)
    for row in measured["rows"]:
        name = row["codec"] + (f", then {row['rescore']}" if row["rescore"] else "")
        table.add_row(name, str(row["bytes"]), *(f"{row['recall'][kind]:.3f}" for kind in asking))
    return table


def _embed(
    bundle: Bundle, images: tuple[str, ...], texts: Path | None, threads: int | None, failures: Failures
) -> dict[Kind, Array]:
    import numpy as np

    import edgeclip

    rows: dict[Kind, Array] = {}
    if not images and texts is None:
        return rows
    with edgeclip.load(bundle, threads=threads) as model:
        if images:
            paths, missing = find_pictures(images, False)
            failures += missing
            found = answers(paths, model.embed_each(paths), failures, "embed", False)
            kept = [vector for _, vector in found]
            rows["image"] = (
                np.stack(kept) if kept else np.empty((0, bundle.manifest.embedding_dim), np.float32)
            )
        if texts is not None:
            from edgeclip.export.samples import texts_in

            rows["text"] = model.embed_texts(texts_in(texts))
    return rows
