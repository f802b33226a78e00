"""`edgeclip search`."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import (
    Failures,
    answers,
    console,
    emit,
    engine_options,
    find_pictures,
    finish,
    json_lines_option,
    pickle_option,
    say,
    strict_option,
)
from edgeclip.cli.search_options import Asking, asking_options
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeclip.runtime.index.away.qdrant import QdrantIndex
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.index.memory import Memory
    from edgeclip.runtime.index.sheet import Part
    from edgeclip.runtime.index.types import Hit, Origin
    from edgeclip.runtime.model import Model

    Searched = Index | Memory | QdrantIndex

EXAMPLES = """\b
Examples:
  edgeclip search photos/ "a red bicycle"                       a folder: embedded now
  edgeclip search pets.index "a red bicycle" -k 20 --json       an index, as `edgeclip index build` makes it
  edgeclip search pets.index "a dog" --not snow                 without what --not says
  edgeclip search pets.index --image car.jpg "at night"         a picture and a text together
  edgeclip search pets.index --like photos/12.jpg               more like one that is stored
  edgeclip search pets.index "a dog" --where "size >= 100000 and caption ~ 'beach'" --threshold 0.25
  edgeclip search pets.index "a wheel" --group --html wheels.html --open    the best region of each picture, as a page
"""


@click.command(epilog=EXAMPLES)
@click.argument("place", metavar="PLACE")
@click.argument("texts", nargs=-1, metavar="[TEXTS]...")
@asking_options
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a contact sheet: one HTML file with the pictures inside.",
)
@click.option(
    "--open", "show", is_flag=True, help="Show the contact sheet; without --html it lies in a temporary file."
)
@click.option(
    "-b",
    "--bundle",
    help="The model: a bundle folder, a .zip of one, hf:ORG/NAME, or nano. Default: nano for a folder or an index of nano's.",
)
@pickle_option
@engine_options
@strict_option
@json_lines_option
def command(
    place: str,
    asking: Asking,
    allow_pickle: bool,
    html: Path | None,
    show: bool,
    bundle: str | None,
    engine: str | tuple[str, ...] | None,
    threads: int | None,
    variants: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> int:
    """Find the pictures that texts, pictures or both describe.

    PLACE is an index, as `edgeclip index build` makes it, or a folder, whose pictures are embedded first, those of its subfolders as
    well, or where `edgeclip index export` has put an index: qdrant:FOLDER, qdrant:http://host:6333/collection. Several TEXTS and pictures are added up, what --not says is taken off; scores are cosines.
    """
    loading = Loading(engine, threads, variants)
    if place.startswith("qdrant:"):
        found = _in_qdrant(place, bundle, loading, asking, allow_pickle)
    elif os.path.isfile(os.path.join(place, "index.json")):  # noqa: PTH113, PTH118  (a name may be too long for Path)
        found = _in_index(Path(place), bundle, loading, asking)
    else:
        found = _in_folder(place, bundle or "nano", loading, asking, as_json)
    if html is not None or show:
        _sheet(found, asking, html, show)
    if as_json:
        for rank, hit in enumerate(found.hits, 1):
            emit(_line(rank, hit))
    elif found.hits:
        _table(found)
    elif found.count or not found.failures:  # what failed is told below
        say(f"{place}: nothing fits, of {found.count}.")
    return finish(found.count if found.failures else 1, found.failures, strict)


@dataclass(frozen=True)
class Loading:
    """How a model is opened."""

    engine: str | tuple[str, ...] | None
    threads: int | None
    variants: tuple[str, ...]

    def load(self, bundle: str) -> Model:
        """Open it."""
        import edgeclip

        return edgeclip.load(bundle, engine=self.engine, threads=self.threads, variants=self.variants)


@dataclass(frozen=True)
class Found:
    """The answer."""

    hits: Sequence[Hit]
    parts: Sequence[Part]  # of the question
    source: str
    model: str
    count: int  # items that were searched
    failures: Failures


def _in_index(path: Path, bundle: str | None, loading: Loading, asking: Asking) -> Found:
    from edgeclip.runtime.index.index import Index

    with ExitStack() as stack:
        index = stack.enter_context(Index.open(path))
        model = None
        if bundle is not None or asking.needs_model:
            model = stack.enter_context(loading.load(bundle or _bundle_of(path, index.origin)))
            index = stack.enter_context(Index.open(path, model))  # refuses another model
        hits, parts = _ask(index, model, asking)
        return Found(hits, parts, str(path), _named(index.origin.name, index.origin.model_id), len(index), [])


def _in_qdrant(place: str, bundle: str | None, loading: Loading, asking: Asking, allow_pickle: bool) -> Found:
    from edgeclip.runtime.index.away.qdrant import QdrantIndex

    with ExitStack() as stack:
        index = stack.enter_context(QdrantIndex.open(place, allow_pickle=allow_pickle))
        model = None
        if bundle is not None or asking.needs_model:
            model = stack.enter_context(loading.load(bundle or _bundle_of(place, index.origin)))
            index.ask_with(model)  # refuses another model
        hits, parts = _ask(index, model, asking)
        return Found(hits, parts, place, _named(index.origin.name, index.origin.model_id), len(index), [])


def _in_folder(place: str, bundle: str, loading: Loading, asking: Asking, as_json: bool) -> Found:
    import numpy as np

    from edgeclip.runtime.index.memory import Memory
    from edgeclip.runtime.index.types import Item

    paths, failures = find_pictures([place], as_json)
    items, rows = [], []
    with loading.load(bundle) as model:
        facts = model.manifest
        if (
            not asking.likes and not asking.centre
        ):  # a question that cannot be asked is told before the folder is embedded
            _question(Memory(np.empty((0, facts.embedding_dim), np.float32), []), model, asking)
        for path, vector in answers(paths, model.embed_each(paths), failures, "embed", as_json):
            status = Path(path).stat()
            items.append(Item(path, {"path": path, "size": status.st_size, "mtime": status.st_mtime}))
            rows.append(vector)
        source = f"{place}" if len(paths) != 1 else str(paths[0])
        if not rows:
            return Found([], [], source, facts.name, 0, failures)
        hits, parts = _ask(Memory(np.stack(rows), items), model, asking)
    return Found(hits, parts, source, _named(facts.name, facts.model_id), len(rows), failures)


def _question(index: Searched, model: Model | None, asking: Asking) -> tuple[Any, list[Part]]:
    """The question as a vector, and as it is shown."""
    from edgeclip.runtime.index.queries import compose_for
    from edgeclip.runtime.index.sheet import parts_of

    query = asking.query(list(index.vectors(asking.likes)))
    found = index.get(asking.likes)
    return compose_for(index, model, query), parts_of(query, [found[key] for key in asking.likes])


def _ask(index: Searched, model: Model | None, asking: Asking) -> tuple[list[Hit], list[Part]]:
    from edgeclip.runtime.index.regions import best_of_each

    vector, parts = _question(index, model, asking)

    def search(k: int) -> list[Hit]:
        more = k + len(asking.likes)  # what others shall be like is no answer
        hits = index.search(vector, more, where=asking.where, threshold=asking.threshold, exact=asking.exact)
        return [hit for hit in hits if hit.key not in asking.likes][:k]

    if asking.group:
        return best_of_each(search, asking.top_k, len(index)), parts
    return search(asking.top_k), parts


def _bundle_of(path: Path | str, origin: Origin) -> str:
    """The embedded bundle that an index was made with. Raises InputError where it was another model."""
    from edgeclip.bundle import open_bundle

    if open_bundle("nano").manifest.model_id == origin.model_id:
        return "nano"
    raise InputError(
        f"{path}: was made with {_named(origin.name, origin.model_id)}, which is not embedded here. Pass its bundle with -b."
    )


def _named(name: str, model_id: str) -> str:
    return f"{name} (model {model_id[:12]}...)"


def _words(parts: Sequence[Part]) -> str:
    from edgeclip.runtime.index.sheet import words_of

    return words_of(parts)


def _line(rank: int, hit: Hit) -> dict[str, Any]:
    """JSON-ready; `path` is one that can be opened where the picture is a file of its own."""
    from edgeclip.runtime.index.places import file_of

    file, record = file_of(hit), dict(hit.record)
    path = record.get("path") if file is None else str(file)
    return {"rank": rank, "key": hit.key, "score": round(hit.score, 6), "path": path, "record": record}


def _table(found: Found) -> None:
    from rich.table import Table

    captions = any(hit.record.get("caption") for hit in found.hits)
    table = Table("rank", "item", "score", *(["caption"] if captions else []), title=_words(found.parts))
    for rank, hit in enumerate(found.hits, 1):
        caption = [str(hit.record.get("caption", ""))] if captions else []
        table.add_row(str(rank), hit.key, f"{hit.score:.3f}", *caption)
    console().print(table)


def _sheet(found: Found, asking: Asking, html: Path | None, show: bool) -> None:
    from edgeclip.files import write_file
    from edgeclip.runtime.index.sheet import Asked, contact_sheet

    asked = Asked(found.parts, found.source, found.model, found.count, asking.where, asking.threshold)
    if html is None:
        descriptor, name = tempfile.mkstemp(prefix="edgeclip-search-", suffix=".html")
        os.close(descriptor)
        html = Path(name)
    write_file(html, contact_sheet(found.hits, asked))
    headless = sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if show and not headless and webbrowser.open(html.absolute().as_uri()):
        return
    click.echo(f"{html}: {len(found.hits)} pictures{'; no display to show it on' if show else ''}", err=True)
