"""`edgeclip index dedupe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeclip.cli.common import console, emit, json_option, say
from edgeclip.cli.index_groups import SHOWN, counted, write_sheet

if TYPE_CHECKING:
    from edgeclip.runtime.index.dedupe import Duplicates, Suggestion

EXAMPLES = """\b
Examples:
  edgeclip index dedupe photos.index                           list them, by the threshold that suits model and pictures
  edgeclip index dedupe photos.index --threshold 0.97 --keep largest --html copies.html
  edgeclip index dedupe photos.index --threshold 0.97 --keep largest --apply
  edgeclip index dedupe photos.index --exact --json            files of the same bytes

\b
The threshold is a cosine; LAION was cleaned at 0.94 with CLIP L/14, where two unrelated pictures have 0.5. Other models need
others: without --threshold it is put between the copies and the mere neighbours of the index itself, and told.
"""


@click.command(epilog=EXAMPLES)
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
def command(
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
