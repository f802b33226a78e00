"""`edgeclip search`."""

from __future__ import annotations

import click

from edgeclip.cli.common import (
    console,
    emit,
    find_pictures,
    finish,
    json_option,
    model_options,
    strict_option,
    tracked,
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
    "-k", "--top-k", type=click.IntRange(min=1), default=10, show_default=True, help="Pictures to print."
)
@model_options
@strict_option
@json_option
def command(
    folder: str,
    query: str,
    top_k: int,
    bundle: str,
    engine: str | None,
    threads: int | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Rank the pictures of a folder by how well a text describes them."""
    import numpy as np

    import edgeclip

    paths = find_pictures([folder])
    failures: list[tuple[str, str]] = []
    found = []
    rows = []
    with edgeclip.load(bundle, engine=engine, threads=threads) as model:
        wanted = model.embed_texts(query)
        for path, vector in tracked(
            zip(paths, model.embed_each(paths), strict=True), len(paths), "embed", as_json
        ):
            if isinstance(vector, edgeclip.EdgeClipError):
                failures.append((str(path), str(vector)))
            else:
                found.append(str(path))
                rows.append(vector)
    cosines = np.stack(rows) @ wanted if rows else np.empty(0, np.float32)
    best = np.argsort(-cosines, kind="stable")[:top_k]
    if as_json:
        for rank, i in enumerate(best, 1):
            emit({"path": found[i], "rank": rank, "cosine": float(cosines[i])})
        for path, reason in failures:
            emit({"path": path, "error": reason})
    elif rows:
        from rich.table import Table

        table = Table("rank", "picture", "cosine", title=query)
        for rank, i in enumerate(best, 1):
            table.add_row(str(rank), found[i], f"{cosines[i]:.3f}")
        console().print(table)
    return finish(len(rows), failures, strict)
