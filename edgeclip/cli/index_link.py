"""`edgeclip index link`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import console, emit, json_option, model_options, say
from edgeclip.cli.index_groups import SHOWN, counted, read_lines, write_lines
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.runtime.index.components import Rows
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.index.linkage import Linkage
    from edgeclip.runtime.index.tuning import Tuned
    from edgeclip.runtime.model import Model

EXAMPLES = """\b
Examples:
  edgeclip index link shop.index catalogue.index --threshold 0.13               each of shop's to the nearest of the catalogue
  edgeclip index link shop.index --threshold 0.2 --weight 0.6 --text-field ocr   which of shop's are the same thing
  edgeclip index link shop.index catalogue.index --tune labelled.jsonl          learn weight and threshold, keep them beside the index
  edgeclip index link shop.index catalogue.index -o pairs.jsonl                 by what was learnt

\b
A record is a picture and the text in its record: z = norm(weight x picture + (1 - weight) x text); without a text, the picture.
The threshold is a distance, 1 - cosine. labelled.jsonl holds {"left": KEY, "right": KEY or null} for two indexes, and
{"key": KEY, "entity": NAME} for one. Source: CLIPPINGS, arXiv:2304.03464.
"""
PAIR, ENTITY = '{"left": KEY, "right": KEY or null}', '{"key": KEY, "entity": NAME}'


@click.command(epilog=EXAMPLES)
@click.argument("index")
@click.argument("reference", required=False)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 2),
    help="Greatest distance (1 - cosine) of a link. Default: the one that was tuned.",
)
@click.option(
    "--weight",
    type=click.FloatRange(0, 1),
    help="Of the picture; the text has the rest. Default: the one that was tuned, else 1.",
)
@click.option(
    "--text-field",
    help="The field of a record that holds its text. Default: the one that was tuned, else caption.",
)
@click.option(
    "--tune",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Learn weight and threshold from labelled records.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write JSON Lines: each record's match or entity.",
)
@model_options
@json_option
def command(
    index: str, reference: str | None, threshold: float | None, weight: float | None, text_field: str | None, tune: Path | None,
    output: Path | None, bundle: str, engine: Any, threads: int | None, variants: tuple[str, ...], as_json: bool,
) -> int:  # fmt: skip
    """Find which records are the same thing.

    With a REFERENCE each record of INDEX is linked to the nearest there; without one records of INDEX are joined into entities.
    What --tune learns is kept in REFERENCE.linkage.json (or INDEX.linkage.json) and used from then on. The model is opened where texts
    count.
    """
    import edgeclip
    from edgeclip.runtime.index.binding import check_model
    from edgeclip.runtime.index.index import Index

    if tune is not None and (threshold is not None or weight is not None or output is not None):
        raise click.UsageError("--tune learns weight and threshold; drop --weight, --threshold and -o.")
    kept = Path(f"{str(reference or index).rstrip('/')}.linkage.json")
    with ExitStack() as stack:
        opened = [stack.enter_context(Index.open(path)) for path in (index, reference) if path is not None]
        if len({one.origin.model_id for one in opened}) > 1:
            a, b = (f"{one.path} of {one.origin.name}" for one in opened)
            raise InputError(
                f"{a} and {b}: vectors of two models cannot be compared. Build one of them again."
            )

        def load() -> Model:
            model = stack.enter_context(
                edgeclip.load(bundle, engine=engine, threads=threads, variants=variants)
            )
            check_model(opened[0].path, opened[0].origin, model)
            return model

        if tune is not None:
            tuned = _tune(tune, opened, load(), text_field or "caption")
            replace(tuned.linkage, field=text_field or "caption", model_id=opened[0].origin.model_id).save(
                kept
            )
            _tell_tuned(tuned, kept, "F1 of links" if reference else "adjusted Rand index", as_json)
            return 0
        how = _chosen(kept, opened[0], threshold, weight, text_field)
        model = load() if how.weight < 1 else None
        records = [_records(one, model, how) for one in opened]
        lines = list(
            _links(records, how.threshold, as_json)
            if reference
            else _entities(records[0], how.threshold, as_json)
        )
    if output is not None:
        write_lines(output, lines)
    if as_json:
        emit(
            {
                "path": index,
                "reference": reference,
                "weight": how.weight,
                "threshold": how.threshold,
                "records": lines,
            }
        )
    else:
        (_links_table if reference else _entities_table)(index, lines)
    return 0


def _chosen(
    kept: Path, index: Index, threshold: float | None, weight: float | None, field: str | None
) -> Linkage:
    """What was tuned, but for what was passed."""
    from edgeclip.runtime.index.linkage import Linkage

    known = Linkage.open(kept, index.origin.model_id) if kept.exists() else None
    if threshold is None and known is None:
        raise InputError(
            f"threshold: none was passed, and {kept} is not there. Pass --threshold, or --tune FILE with labelled records."
        )
    if known is None:
        known = Linkage(1, threshold or 0)
    return replace(
        known,
        threshold=known.threshold if threshold is None else threshold,
        weight=known.weight if weight is None else weight,
        field=field or known.field,
    )


def _records(index: Index, model: Model | None, how: Linkage) -> Rows:
    from edgeclip.runtime.index.linkage import records_of

    return records_of(index, model, how.weight, how.field)


def _links(records: Sequence[Rows], threshold: float, quiet: bool) -> Iterator[dict[str, Any]]:
    from edgeclip.runtime.index.linkage import link

    with counted(len(records[0].ids_where(None)), "link", quiet) as tell:
        for found in link(records[0], records[1], threshold, progress=tell):
            yield found.to_dict()


def _entities(records: Rows, threshold: float, quiet: bool) -> Iterator[dict[str, Any]]:
    from edgeclip.runtime.index.linkage import link_within

    with counted(len(records.ids_where(None)), "link", quiet) as tell:
        ids, entities = link_within(records, threshold, progress=tell)
    known = dict(zip(ids.tolist(), entities.tolist(), strict=True))
    for numbers, _, items in records.batches():
        for number, item in zip(numbers.tolist(), items, strict=True):
            yield {"key": item.key, "entity": known[number]}


def _tune(file: Path, opened: Sequence[Index], model: Model, field: str) -> Tuned:
    from edgeclip.runtime.index.linkage import Records
    from edgeclip.runtime.index.tuning import tune_entities, tune_links

    wanted = PAIR if len(opened) > 1 else ENTITY
    lines = read_lines(file, wanted)
    ids = [{item.key: number for number, item in one.items()} for one in opened]
    if len(opened) == 1:
        named = {_id(ids[0], line, "key", file, wanted): str(line.get("entity")) for line in lines}
        _check_once(named, lines, file)
        records = Records.read(opened[0], model, field, only=named)
        return tune_entities(records, [named[number] for number in records.ids.tolist()])
    matches = {
        _id(ids[0], line, "left", file, wanted): None
        if line.get("right") is None
        else _id(ids[1], line, "right", file, wanted)
        for line in lines
    }
    _check_once(matches, lines, file)
    left, right = Records.read(opened[0], model, field, only=matches), Records.read(opened[1], model, field)
    places = {number: i for i, number in enumerate(right.ids.tolist())} | {None: -1}
    return tune_links(left, right, [places[matches[number]] for number in left.ids.tolist()])


def _check_once(found: Mapping[int, Any], lines: Sequence[Any], file: Path) -> None:
    if len(found) < len(lines):
        raise InputError(
            f"{file}: {len(lines)} lines label {len(found)} records; expected one line for each."
        )


def _id(ids: Mapping[str, int], line: Mapping[str, Any], name: str, file: Path, wanted: str) -> int:
    key = line.get(name)
    if not isinstance(key, str) or key not in ids:
        raise InputError(f"{file}: {name} {key!r} is no key of the index. Expected lines like {wanted}.")
    return ids[key]


def _tell_tuned(tuned: Tuned, kept: Path, what: str, as_json: bool) -> None:
    if as_json:
        emit({**tuned.to_dict(), "of": what, "path": str(kept)})
        return
    click.echo(
        f"{kept}: weight {tuned.linkage.weight:g}, threshold {tuned.linkage.threshold:g}; {what} {tuned.score:.3f} on these records "
        f"(the picture alone {tuned.picture_alone:.3f}, the text alone {tuned.text_alone:.3f})",
        err=True,
    )


def _links_table(index: str, lines: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    linked = sorted(
        (line for line in lines if line["right"] is not None), key=lambda line: -float(line["score"])
    )
    if linked:
        table = Table("record", "reference", "cosine")
        for line in linked[:SHOWN]:
            table.add_row(line["left"], line["right"], f"{line['score']:.3f}")
        console().print(table)
    if len(linked) > SHOWN:
        say(f"{len(linked) - SHOWN} links more; -o or --json give all.")
    click.echo(f"{index}: {len(linked):,} of {len(lines):,} records linked", err=True)


def _entities_table(index: str, lines: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    members: dict[int, list[str]] = {}
    for line in lines:
        members.setdefault(line["entity"], []).append(line["key"])
    several = sorted((keys for keys in members.values() if len(keys) > 1), key=len, reverse=True)
    if several:
        table = Table("records", "the same thing")
        for keys in several[:SHOWN]:
            table.add_row(
                str(len(keys)), "\n".join(keys[:5] + ([f"and {len(keys) - 5} more"] if len(keys) > 5 else []))
            )
        console().print(table)
    if len(several) > SHOWN:
        say(f"{len(several) - SHOWN} entities more; -o or --json give all.")
    click.echo(
        f"{index}: {len(lines):,} records of {len(members):,} entities, {len(several):,} with several",
        err=True,
    )
