"""`edgeclip index remove`, `info`, `verify` and `optimize`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import emit, engine_options, json_option, say, strict_option
from edgeclip.cli.index_show import show, size, size_rows
from edgeclip.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.model import Model

REMOVE_EXAMPLES = """\b
Examples:
  edgeclip index remove photos.index a.jpg below/b.jpg
  edgeclip index remove photos.index --where "size < 10000 or caption ~ 'blurred'" --dry-run
"""

INFO_EXAMPLES = """\b
Examples:
  edgeclip index info photos.index
  edgeclip index info photos.index --measure --json
  edgeclip index info photos.index --measure -b clip-b32/ --variant image-int8-decomposed   what another precision costs
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
@click.option(
    "--measure", is_flag=True, help="Measure recall now, on stored vectors, and keep the figure in the index."
)
@click.option(
    "-b",
    "--bundle",
    help="With --measure: what queries by this bundle's variant find, where another one wrote the index.",
)
@engine_options
@json_option
def info(
    index: str, measure: bool, bundle: str | None, engine: str | tuple[str, ...] | None, threads: int | None,
    variants: tuple[str, ...], as_json: bool,
) -> int:  # fmt: skip
    """Say what an index holds, and how well a search finds it.

    INDEX is its folder.
    """
    import edgeclip

    if bundle is not None and not measure:
        raise click.UsageError("-b says what --measure measures: pass --measure too.")
    loaded = (
        edgeclip.load(bundle, engine=engine, threads=threads, variants=variants)
        if bundle is not None
        else nullcontext()
    )
    with loaded as model, _opened(index, model, to_keep=measure) as opened:
        found = {}
        if measure:
            found["recall"] = opened.measure_recall()
        if model is not None:
            found["variants"] = opened.measure_variants()
            if not found["variants"]:
                say(f"{index}: written by this bundle's own variant: there is nothing to compare.")
        facts = opened.info()
        facts["measured"] = {**facts["measured"], **found}
    if as_json:
        emit(facts)
    else:
        show(index, _info_rows(facts))
    return 0


def _opened(index: str, model: Model | None, *, to_keep: bool) -> Index:
    """For writing where that can be: a figure that cannot be kept is shown all the same."""
    from edgeclip.runtime.index.index import Index

    if to_keep and os.access(index, os.W_OK):
        with suppress(InputError):  # somebody writes to it; whatever else it is, is told below
            return Index.open(index, model, write=True)
    return Index.open(index, model)


def _info_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    model = facts["model"]
    rows = [
        ("model", f"{model['name']} ({model['model_id'][:12]}), width {model['dim']}"),
        ("written by", ", ".join(model["variants"]) or "not known"),
        ("precision", facts["precision"]),
        *size_rows(facts),
    ]
    for variant, cost in facts["measured"].get("variants", {}).items():
        found = f"{cost['recall']:.3f} of what stored vectors find, cosine {cost['cosine']:.4f}"
        rows.append((f"asked by {variant}", found))
    for number, one in enumerate(facts["segments"], 1):
        rows.append((f"segment {number}", f"{one['items']:,} vectors, {one['kind']}{_gone(one['removed'])}"))
    return [*rows, ("in the log", f"{facts['in_log']:,}")]


def _gone(count: int) -> str:
    return f", {count:,} removed" if count else ""


@click.command(epilog=VERIFY_EXAMPLES)
@click.argument("index")
@json_option
def verify(index: str, as_json: bool) -> int:
    """Read every byte of an index and compare it with its checksums.

    INDEX is its folder. Exit code 1 where anything is damaged.
    """
    from edgeclip.runtime.index.manifest import NAME
    from edgeclip.runtime.index.verify import find_problems

    place = Path(index)
    if not (
        (place / NAME).exists() or (place / "segments").is_dir()
    ):  # what holds segments has lost the other
        raise InputError(f"{index}: no such index. Make one with `edgeclip index build`.")
    problems = find_problems(place)
    total = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    if as_json:
        emit({"path": index, "problems": problems, "bytes": total})
    for problem in problems:
        say(problem)
    if problems:
        raise CheckFailed(f"{index}: not whole. Copy it from where it is, or build it again.")
    if not as_json:
        click.echo(f"{index}: whole; {size(total)} read", err=True)
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
