"""`edgeclip index remove`, `info`, `verify` and `optimize`."""

from __future__ import annotations

from contextlib import ExitStack

import click

from edgeclip.cli.common import emit, json_option, say, strict_option
from edgeclip.cli.index_show import show, size, size_rows
from edgeclip.errors import CheckFailed

REMOVE_EXAMPLES = """\b
Examples:
  edgeclip index remove photos.index a.jpg below/b.jpg
  edgeclip index remove photos.index --where "size < 10000 or caption ~ 'blurred'" --dry-run
"""

INFO_EXAMPLES = """\b
Examples:
  edgeclip index info photos.index
  edgeclip index info photos.index --measure --json
"""

VERIFY_EXAMPLES = """\b
Examples:
  edgeclip index verify photos.index              exit code 1 where anything is damaged
  edgeclip index verify photos.index --json
"""

OPTIMIZE_EXAMPLES = """\b
Examples:
  edgeclip index optimize photos.index             after many additions and removals
"""


@click.command(epilog=REMOVE_EXAMPLES)
@click.argument("index")
@click.argument("keys", nargs=-1)
@click.option("--where", metavar="FILTER", help="Remove what meets this condition on records.")
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@strict_option
@json_option
def remove(
    index: str, keys: tuple[str, ...], where: str | None, dry_run: bool, strict: bool, as_json: bool
) -> int:
    """Remove items from an index. Asks nothing.

    INDEX is its folder; KEYS name items as a search shows them.
    """
    from edgeclip.runtime.index.index import Index

    if bool(keys) == (where is not None):
        raise click.UsageError("Pass either KEYS or --where FILTER.")
    with Index.open(index, write=not dry_run) as opened:
        if where is not None:
            ids = set(opened.ids_where(where).tolist())
            found = [item.key for number, item in opened.items() if number in ids]
        else:
            found = list(opened.get(keys))
        missing = sorted(set(keys) - set(found))
        if not dry_run:
            opened.remove(found)
    if as_json:
        emit(
            {
                "removed": [] if dry_run else found,
                **({"would_remove": found} if dry_run else {}),
                "missing": missing,
            }
        )
    else:
        for key in found if dry_run else ():
            click.echo(key)
        click.echo(f"{index}: {len(found)} {'would be removed' if dry_run else 'removed'}", err=True)
    for key in missing:
        say(f"{index}: no item {key!r}.")
    if missing and not found:
        return 2
    return 1 if missing and strict else 0


@click.command(epilog=INFO_EXAMPLES)
@click.argument("index")
@click.option("--measure", is_flag=True, help="Measure recall on the stored vectors now, and keep it.")
@click.option(
    "-b",
    "--bundle",
    help="With --measure: what queries by this bundle's precision find of what stored vectors find.",
)
@json_option
def info(index: str, measure: bool, bundle: str | None, as_json: bool) -> int:
    """Say what an index holds, and how well a search finds it.

    INDEX is its folder.
    """
    from edgeclip.runtime.index.index import Index

    if bundle is not None and not measure:
        raise click.UsageError("-b says what --measure measures: pass --measure too.")
    import edgeclip

    with ExitStack() as stack:
        model = stack.enter_context(edgeclip.load(bundle)) if bundle else None
        opened = stack.enter_context(Index.open(index, model, write=measure))
        if measure:
            opened.measure_recall()
        if bundle and not opened.measure_variants():
            say(f"{index}: written by this bundle's own variant: there is nothing to compare.")
        facts = opened.info()
    if as_json:
        emit(facts)
        return 0
    model, segments = facts["model"], facts["segments"]
    rows = [
        ("model", f"{model['name']} ({model['model_id'][:12]}), width {model['dim']}"),
        ("written by", ", ".join(model["variants"]) or "not known"),
        ("precision", facts["precision"]),
        *size_rows(facts),
        *(
            (f"segment {n}", f"{one['items']:,} vectors, {one['kind']}" + _gone(one["removed"]))
            for n, one in enumerate(segments, 1)
        ),
        ("in the log", f"{facts['in_log']:,}"),
        *(
            (
                f"asked by {name}",
                f"{one['recall']:.3f} of what stored vectors find, cosine {one['cosine']:.4f}",
            )
            for name, one in facts["measured"].get("variants", {}).items()
        ),
    ]
    show(index, rows)
    return 0


def _gone(count: int) -> str:
    return f", {count:,} removed" if count else ""


@click.command(epilog=VERIFY_EXAMPLES)
@click.argument("index")
@json_option
def verify(index: str, as_json: bool) -> int:
    """Read every byte of an index and compare it with its checksums.

    INDEX is its folder. Exit code 1 where anything is damaged.
    """
    from edgeclip.runtime.index.index import Index

    with Index.open(index) as opened:
        problems, count, total = opened.verify(), len(opened), opened.info()["bytes"]
    if as_json:
        emit({"path": index, "problems": problems, "items": count, "bytes": total})
    for problem in problems:
        say(problem)
    if problems:
        raise CheckFailed(
            f"{index}: {len(problems)} problems. Build it again, or copy it from where it is whole."
        )
    if not as_json:
        click.echo(f"{index}: whole; {count:,} items, {size(total)} read", err=True)
    return 0


@click.command(epilog=OPTIMIZE_EXAMPLES)
@click.argument("index")
@json_option
def optimize(index: str, as_json: bool) -> int:
    """Merge an index into one segment: the fastest search, the least space.

    INDEX is its folder. Readers go on meanwhile.
    """
    from edgeclip.runtime.index.index import Index

    with Index.open(index, write=True) as opened:
        before = opened.info()
        opened.optimize()
        after = opened.info()
    if as_json:
        emit({"before": before, "after": after})
    else:
        was, now = (f"{len(facts['segments'])} segments, {size(facts['bytes'])}" for facts in (before, after))
        click.echo(f"{index}: {was} -> {now}", err=True)
    return 0
