"""`edgeclip search`."""

from __future__ import annotations

import click

from edgeclip.cli.common import (
    answers,
    console,
    emit,
    find_pictures,
    finish,
    json_lines_option,
    model_options,
    strict_option,
)

EXAMPLES = """\b
Examples:
  edgeclip search photos/ "a red bicycle"
  edgeclip search photos/ "a dog on a beach" -b clip-b32/ -k 20 --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("folder")
@click.argument("query")
@click.option(
    "-k",
    "--top-k",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many pictures to show.",
)
@model_options
@strict_option
@json_lines_option
def command(
    folder: str,
    query: str,
    top_k: int,
    bundle: str,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> int:
    """Rank the pictures of a folder by how well a text describes them.

    FOLDER is searched with all its subfolders; QUERY is any text.
    """
    import numpy as np

    import edgeclip

    paths, failures = find_pictures([folder], as_json)
    found, rows = [], []
    with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
        wanted = model.embed_texts(query)
        for path, vector in answers(paths, model.embed_each(paths), failures, "embed", as_json):
            found.append(path)
            rows.append(vector)
        cosines = np.stack(rows) @ wanted if rows else np.empty(0, np.float32)
    best = np.argsort(-cosines, kind="stable")[:top_k]
    if as_json:
        for rank, i in enumerate(best, 1):
            emit({"path": found[i], "rank": rank, "cosine": float(cosines[i])})
    elif rows:
        from rich.table import Table

        table = Table("rank", "picture", "cosine", title=query)
        for rank, i in enumerate(best, 1):
            table.add_row(str(rank), found[i], f"{cosines[i]:.3f}")
        console().print(table)
    return finish(len(rows), failures, strict)
