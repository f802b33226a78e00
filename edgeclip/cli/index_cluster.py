"""`edgeclip index cluster`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import console, emit, json_option, model_options, parse_labels, say
from edgeclip.cli.index_groups import SHOWN, counted, write_lines, write_sheet

if TYPE_CHECKING:
    from edgeclip.runtime.index.clusters import Cluster, Clusters

EXAMPLES = """\b
Examples:
  edgeclip index cluster photos.index -k 20
  edgeclip index cluster photos.index -k 20 --labels @labels.txt -o clusters.jsonl     each named by the label nearest to it
  edgeclip index cluster photos.index --threshold 0.9          what a chain of near neighbours joins
  edgeclip index cluster shop.index -k 20 --weight 0.6 --text-field ocr      by pictures and their texts
"""


@click.command(epilog=EXAMPLES)
@click.argument("index")
@click.option("-k", type=click.IntRange(min=1), help="Divide into so many, by k-means.")
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="Join what has this cosine or more, and what that has, and so on.",
)
@click.option(
    "--least",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="With --threshold: items that a cluster needs.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="With -k: another seed starts elsewhere.",
)
@click.option(
    "--labels",
    help="Name each cluster by the nearest of these: 'a cat,a dog', or @FILE with one label a line.",
)
@click.option("--label", multiple=True, help="One label; repeat for more (for labels with commas).")
@click.option(
    "--weight",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Of the picture; the text of its record has the rest.",
)
@click.option(
    "--text-field", default="caption", show_default=True, help="The field of a record that holds its text."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write JSON Lines: each item's cluster.",
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a contact sheet: the picture nearest to each centre.",
)
@model_options
@json_option
def command(
    index: str, k: int | None, threshold: float | None, least: int, seed: int, labels: str | None, label: tuple[str, ...],
    weight: float, text_field: str,    output: Path | None, html: Path | None, bundle: str, engine: Any, threads: int | None, variants: tuple[str, ...], as_json: bool,
) -> int:  # fmt: skip
    """Divide an index into groups of like pictures.

    INDEX is its folder. The model is opened for --labels and --weight only.
    """
    import edgeclip
    from edgeclip.runtime.index.binding import check_model
    from edgeclip.runtime.index.clusters import cluster, cluster_by_threshold, name_clusters
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.index.linkage import records_of

    if (k is None) == (threshold is None):
        raise click.UsageError("Pass either -k N or --threshold X.")
    texts = parse_labels(labels, label) if labels or label else []
    with ExitStack() as stack:
        opened, model = stack.enter_context(Index.open(index)), None
        if texts or weight < 1:
            model = stack.enter_context(
                edgeclip.load(bundle, engine=engine, threads=threads, variants=variants)
            )
            check_model(opened.path, opened.origin, model)
        rows = records_of(opened, model, weight, text_field)
        with counted(len(opened), "cluster", as_json) as tell:
            if k is not None:
                found = cluster(rows, k, seed=seed, progress=tell)
            else:
                found = cluster_by_threshold(rows, threshold or 0.0, least=least, progress=tell)
        if model is not None and texts and found.clusters:
            found = name_clusters(found, model, texts)
        if html is not None:
            write_sheet(
                html, f"{len(found.clusters)} clusters", [one.nearest for one in found.clusters], opened
            )
    if output is not None:
        write_lines(output, _members(found))
    if as_json:
        emit({"path": index, "items": len(found.ids), "clusters": [one.to_dict() for one in found.clusters]})
    else:
        _clusters_table(index, found.clusters, len(found.ids), bool(texts))
    return 0


def _members(found: Clusters) -> Iterator[dict[str, Any]]:
    for key, number, label, score in zip(
        found.keys, found.ids.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
    ):
        yield {"key": key, "id": number, "cluster": label if label >= 0 else None, "score": round(score, 6)}


def _clusters_table(index: str, clusters: Sequence[Cluster], items: int, named: bool) -> None:
    from rich.table import Table

    if clusters:
        table = Table("cluster", "items", *(["label"] if named else []), "tightness", "nearest to its centre")
        for one in clusters[:SHOWN]:
            label = [one.label or ""] if named else []
            table.add_row(str(one.number), f"{one.size:,}", *label, f"{one.tightness:.3f}", one.nearest.key)
        console().print(table)
    if len(clusters) > SHOWN:
        say(f"{len(clusters) - SHOWN} clusters more; --json lists all.")
    inside = sum(one.size for one in clusters)
    alone = f"; {items - inside:,} in none" if items > inside else ""
    click.echo(f"{index}: {len(clusters):,} clusters of {items:,} items{alone}", err=True)
