"""`edgeclip index dedupe` and `edgeclip index cluster`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import console, emit, json_option, model_options, notes, parse_labels, say
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.runtime.index.clusters import Cluster, Clusters
    from edgeclip.runtime.index.dedupe import Duplicates, Suggestion
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.index.types import Hit

SHOWN = 20  # groups in a table; --json and -o have all

DEDUPE_EXAMPLES = """\b
Examples:
  edgeclip index dedupe photos.index                           list them, by the threshold that suits model and pictures
  edgeclip index dedupe photos.index --threshold 0.97 --keep largest --html copies.html
  edgeclip index dedupe photos.index --threshold 0.97 --keep largest --apply
  edgeclip index dedupe photos.index --exact --json            files of the same bytes

\b
The threshold is a cosine; LAION was cleaned at 0.94 with CLIP L/14, where two unrelated pictures have 0.5. Other models need
others: without --threshold it is put between the copies and the mere neighbours of the index itself, and told.
"""

CLUSTER_EXAMPLES = """\b
Examples:
  edgeclip index cluster photos.index -k 20
  edgeclip index cluster photos.index -k 20 --labels @labels.txt -o clusters.jsonl     each named by the label nearest to it
  edgeclip index cluster photos.index --threshold 0.9          what a chain of near neighbours joins
"""


@click.command(epilog=DEDUPE_EXAMPLES)
@click.argument("index")
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="Least cosine of a copy and what is kept; 1: equal vectors. Default: suggested by the data.",
)
@click.option("--exact", is_flag=True, help="Compare the bytes of files, not vectors.")
@click.option(
    "--keep",
    type=click.Choice(["first", "largest", "newest", "oldest"]),
    default="first",
    show_default=True,
    help="Which one stays: the first added, the largest file, or by its time.",
)
@click.option(
    "--chain",
    is_flag=True,
    help="Keep one of all that a chain of copies joins, however far its ends are from each other.",
)
@click.option("--apply", is_flag=True, help="Remove the copies from the index. Files stay.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a contact sheet: each kept picture, then its copies.",
)
@json_option
def dedupe(
    index: str, threshold: float | None, exact: bool, keep: str, chain: bool, apply: bool, html: Path | None, as_json: bool
) -> int:  # fmt: skip
    """List what is in an index more than once, and remove it with --apply.

    INDEX is its folder. An item goes only if it is as near as the threshold to one that stays.
    """
    from edgeclip.runtime.index.dedupe import find_duplicates, find_identical, suggest_threshold
    from edgeclip.runtime.index.index import Index

    if exact and (threshold is not None or chain):
        raise click.UsageError("--exact compares bytes; drop --threshold and --chain.")
    if apply and threshold is None and not exact:
        raise click.UsageError("--apply removes: pass the --threshold too that you looked at.")
    with Index.open(index, write=apply) as opened:
        suggested = suggest_threshold(opened) if threshold is None and not exact else None
        with counted(len(opened), "compare", as_json or exact) as tell:
            found = (
                find_identical(opened, keep=keep)
                if exact
                else find_duplicates(opened, suggested.threshold if suggested else threshold, keep=keep, chain=chain, progress=tell)
            )  # fmt: skip
        removed = found.remove_from(opened) if apply else 0
        if html is not None:
            what = "the same bytes" if exact else f"copies at a cosine of {found.threshold:g} or more"
            write_sheet(
                html, what, [hit for group in found.groups for hit in (group.kept, *group.copies)], opened
            )
    if as_json:
        told = {} if suggested is None else {"suggestion": suggested.to_dict()}
        emit({
            "path": index, "items": found.items, "threshold": found.threshold, **told, "copies": len(found.copies),
            "removed": removed, "groups": [group.to_dict() for group in found.groups],
            "unread": [{"key": key, "error": reason} for key, reason in found.unread],
        })  # fmt: skip
    else:
        _duplicates_table(index, found, suggested, removed if apply else None)
    for key, reason in found.unread:
        say(f"skipped: {key}: {reason}")
    return 0


def _duplicates_table(
    index: str, found: Duplicates, suggested: Suggestion | None, removed: int | None
) -> None:
    from rich.table import Table

    if found.groups:
        table = Table("kept", "copies", "cosine")
        for group in found.groups[:SHOWN]:
            copies = group.copies[:5]
            more = len(group.copies) - len(copies)
            names = [copy.key for copy in copies] + ([f"and {more} more"] if more else [])
            table.add_row(group.kept.key, "\n".join(names), "\n".join(f"{copy.score:.3f}" for copy in copies))
        console().print(table)
    if len(found.groups) > SHOWN:
        say(f"{len(found.groups) - SHOWN} groups more; --json lists all.")
    if suggested is not None:
        near = ", ".join(f"{value:.3f} ({name} %)" for name, value in suggested.nearest.items())
        say(f"threshold {suggested.threshold:g}, suggested: two unrelated items have {suggested.unrelated:.3f}, an item and its nearest {near}")  # fmt: skip
    how = "of the same bytes" if found.threshold is None else f"at a cosine of {found.threshold:g} or more"
    count = f"{len(found.copies):,} {'copy' if len(found.copies) == 1 else 'copies'}"
    said = f"{index}: {count} among {found.items:,} items, {how}"
    if removed is not None:
        said += f"; {removed:,} removed"
    elif found.groups:
        again = "--exact" if found.threshold is None else f"--threshold {found.threshold:g}"
        said += f"; to remove: the same with {again} --apply"
    click.echo(said, err=True)


@click.command(epilog=CLUSTER_EXAMPLES)
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
def cluster(
    index: str, k: int | None, threshold: float | None, least: int, seed: int, labels: str | None, label: tuple[str, ...],
    output: Path | None, html: Path | None, bundle: str, engine: Any, threads: int | None, variants: tuple[str, ...], as_json: bool,
) -> int:  # fmt: skip
    """Divide an index into groups of like pictures.

    INDEX is its folder. The model is opened for --labels only.
    """
    import edgeclip
    from edgeclip.runtime.index.binding import check_model
    from edgeclip.runtime.index.clusters import cluster as by_centres
    from edgeclip.runtime.index.clusters import cluster_by_threshold, name_clusters
    from edgeclip.runtime.index.index import Index

    if (k is None) == (threshold is None):
        raise click.UsageError("Pass either -k N or --threshold X.")
    texts = parse_labels(labels, label) if labels or label else []
    with Index.open(index) as opened:
        with counted(len(opened), "cluster", as_json) as tell:
            if k is not None:
                found = by_centres(opened, k, seed=seed, progress=tell)
            else:
                found = cluster_by_threshold(opened, threshold or 0.0, least=least, progress=tell)
        if texts and found.clusters:
            with edgeclip.load(bundle, engine=engine, threads=threads, variants=variants) as model:
                check_model(opened.path, opened.origin, model)
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


@contextmanager
def counted(total: int, what: str, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """Gives what is told how many more are done, and shows it on stderr. None where stderr is no terminal or there are few."""
    if quiet or total < 10_000 or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=notes(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON Lines, whole or not at all."""
    from edgeclip.files import write_file

    write_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_sheet(path: Path, what: str, hits: Sequence[Hit], index: Index) -> None:
    """A contact sheet of these items."""
    from edgeclip.files import write_file
    from edgeclip.runtime.index.sheet import Asked, Part, contact_sheet

    asked = Asked([Part(what, 1)], str(index.path), index.origin.name, len(index))
    write_file(path, contact_sheet(hits, asked))
    click.echo(f"{path}: {len(hits)} pictures", err=True)


def read_lines(path: Path, wanted: str) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file. Raises InputError, with the line, for anything else; `wanted` says what a line looks like."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({reason}). Expected JSON Lines like {wanted}.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: no JSON ({error}). Expected {wanted}.") from error
        if not isinstance(record, dict):
            raise InputError(
                f"{path}, line {number}: expected an object like {wanted}, got {type(record).__name__}."
            )
        found.append(record)
    return found
