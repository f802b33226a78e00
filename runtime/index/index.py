"""An index: vectors on disk that are searched where they lie, bound to the model that made them.

    with edgeclip.load("nano") as model, edgeclip.Index.create("pets.index", model) as index:
        index.add_images(["cat.jpg", "dog.jpg"])
        print(index.search("a sleeping cat", k=5)[0].key)

What `add` and `remove` have returned survives a crash. One process writes, any number read; a reader sees what the writer adds.
Methods may be called from several threads. `store.py` says how it lies on disk.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime import fork
from edgeclip.runtime.index import maintenance
from edgeclip.runtime.index.binding import (
    check_model,
    measure_variants,
    origin_of,
    tell_of_variant,
    variants_in_use,
)
from edgeclip.runtime.index.filters import Filter, parse_filter
from edgeclip.runtime.index.queries import Query, compose_for
from edgeclip.runtime.index.store import Store
from edgeclip.runtime.index.types import Hit, IndexSettings, Item, Origin, as_items
from edgeclip.runtime.index.view import View, gather, look

if TYPE_CHECKING:
    from edgeclip.runtime.images.decode import Color, Picture
    from edgeclip.runtime.model import Model

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
Where = Filter | str | Mapping[str, Any] | None
ADDED_AT_ONCE = 256  # pictures of `add_images`: what a crash may cost to embed again

log = logging.getLogger(__name__)


class Index:
    """See `create` and `open`."""

    def __init__(self, store: Store, model: Model | None = None) -> None:
        if model is not None:
            check_model(store.path, store.manifest.origin, model)
            tell_of_variant(store.path, store.manifest, model)
        self._store, self._model = store, model
        self._lock = threading.RLock()
        self._view = look(store, None)
        fork.register(self)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        model: Model | Origin,
        *,
        settings: IndexSettings | None = None,
        overwrite: bool = False,
    ) -> Index:
        """Make an empty index, open for writing.

        Args:
            model: whose vectors it will hold; an Origin where they come ready-made.
        Raises:
            InputError: `path` is there already and `overwrite` is false, or cannot be made.
        """
        origin = model if isinstance(model, Origin) else origin_of(model)
        store = Store.create(Path(path).absolute(), origin, settings or IndexSettings(), overwrite=overwrite)
        return cls(store, None if isinstance(model, Origin) else model)

    @classmethod
    def open(cls, path: str | os.PathLike[str], model: Model | None = None, *, write: bool = False) -> Index:
        """Open an index that is there: in milliseconds, since vectors stay on disk until they are looked at.

        Args:
            model: makes vectors of queries that are texts or pictures; the caller closes it.
            write: to add and remove. One process may.
        Raises:
            InputError: no index, a damaged one, one of another model, or one that another process writes.
        """
        store = Store.open(Path(path).absolute(), write=write)
        try:
            return cls(store, model)
        except BaseException:
            store.close()
            raise

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def after_fork(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    def close(self) -> None:
        """Give up the files, and the right to write. Twice is fine."""
        self._store.close()
        self._view = View(())  # files are let go of when the last search that is under way has ended

    def __len__(self) -> int:
        return sum(part.living_count for part in self._now().parts)

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._store.path

    @property
    def origin(self) -> Origin:
        """The model whose vectors it holds."""
        return self._store.manifest.origin

    @property
    def settings(self) -> IndexSettings:
        """What it was made with."""
        return self._store.manifest.settings

    # --- asking

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        where: Where = None,
        threshold: float | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The k items nearest to a query, best first; fewer where fewer fit.

        Args:
            query: a text, a picture (Path, bytes, PIL image, uint8 array), a Query, or a (D,) vector.
            where: a condition on records, as `filters.parse_filter` reads it, or {field: value, ...}.
            threshold: least cosine.
            exact: compare every vector, whatever the index would do.
        Raises:
            InputError: a query that cannot be used, or one that needs the model and was opened without.
        """
        return self.search_many(
            self.vector_of(query)[None], k, where=where, threshold=threshold, exact=exact
        )[0]

    def search_many(
        self,
        queries: NDArray[Any],
        k: int = 10,
        *,
        where: Where = None,
        threshold: float | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """`search` for each row of (Q, D) vectors of this index's model."""
        view, found = self._found(queries, k, where, exact)
        least = -np.inf if threshold is None else threshold
        return [[hit for hit in hits if hit.score >= least] for hits in view.hits(*found)]

    def search_ids(
        self, queries: NDArray[Any], k: int = 10, *, where: Where = None, exact: bool = False
    ) -> tuple[Ids, Vectors]:
        """Like `search_many`, without records: (Q, K) ids, -1 where fewer fit, and cosines; K is k, or all there are."""
        view, (part, row, scores) = self._found(queries, k, where, exact)
        return view.ids(part, row), scores

    def _found(
        self, queries: NDArray[Any], k: int, where: Where, exact: bool
    ) -> tuple[View, tuple[Ids, Ids, Vectors]]:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
            raise InputError(f"k: expected 1 or more, got {k!r}.")
        view = self._now()
        most = min(k, max(1, sum(len(part.ids) for part in view.parts)))  # a huge k asks for no memory
        return view, view.search(self._checked(queries), int(most), _fits(view, where), exact=exact)

    def vector_of(self, query: Any) -> Vectors:
        """The (D,) unit vector of whatever `search` takes."""
        if isinstance(query, np.ndarray) and query.dtype != np.uint8:
            return np.asarray(query, np.float32)
        if isinstance(query, Query):  # of vectors alone it needs no model
            return compose_for(self, self._model, query)
        if self._model is None:
            raise InputError(
                f"{self.path}: opened without a model, so a query is a vector, got {type(query).__name__}. Pass one to Index.open."
            )
        if isinstance(query, str):
            return self._model.embed_texts(query)
        return self._model.embed_images(query)

    def get(self, keys: Iterable[str]) -> dict[str, Item]:
        """Key -> item, of those that are there."""
        return gather(self._now().find(_several(keys)), lambda part, rows: part.records.items(rows))

    def vectors(self, keys: Sequence[str]) -> Vectors:
        """(N, D) stored vectors. Raises InputError for a key that is not there."""
        wanted = _several(keys)
        rows = gather(self._now().find(wanted), lambda part, rows: part.vectors(rows))
        if missing := [key for key in wanted if key not in rows]:
            raise InputError(f"{self.path}: no item {missing[0]!r}.")
        return np.stack([rows[key] for key in wanted]) if rows else np.empty((0, self.origin.dim), np.float32)

    def keys(self) -> Iterator[str]:
        """Of all items, in the order in which they were added."""
        return (item.key for _, item in self.items())

    def items(self) -> Iterator[tuple[int, Item]]:
        """(id, item) of all, in the order in which they were added."""
        for ids, _, items in self._now().batches(4096, with_vectors=False):
            yield from zip(ids.tolist(), items, strict=True)

    def batches(self, size: int = 4096) -> Iterator[tuple[Ids, Vectors, list[Item]]]:
        """All items as (n,) ids, (n, D) vectors and n items, in the order in which they were added."""
        return self._now().batches(size)

    def pinned(self) -> View:
        """What is there now: its `batches`, `search_ids` and `ids_where` agree with each other while somebody writes."""
        return self._now()

    # --- changing

    def add(self, vectors: NDArray[Any], items: Sequence[Item | str | Mapping[str, Any]]) -> list[int]:
        """Add vectors; durable when this returns. An item whose key is there already is replaced.

        Args:
            vectors: (N, D) unit rows.
            items: N of them; a str is a key, a mapping a record with its "key", or else its "path".
        Returns:
            N ids.
        Raises:
            InputError: shapes, a key twice, a vector that is not finite or not of length 1, or an index opened for reading.
        """
        whole = as_items(items)
        with self._lock:
            view = self._now()
            old = [int(part.ids[row]) for part, row in view.find(item.key for item in whole).values()]
            if (
                self._model is not None
            ):  # before the append: an error after it would say that nothing was added
                for variant in set(variants_in_use(self._model)) - set(self.origin.variants):
                    self._store.written_by(variant)
            ids = self._store.append(vectors, whole, removes=old)
            self._view = look(self._store, view)
            if len(self._store.tail.ids) >= self.settings.flush_at:
                self._flush_or_tell()
        return [int(number) for number in ids]

    def add_images(
        self,
        images: Iterable[Picture],
        items: Sequence[Item | str | Mapping[str, Any]] | None = None,
        *,
        color: Color = "rgb",
        batch_size: int = 8,
    ) -> list[int | InputError]:
        """Embed pictures and add them.

        Args:
            items: as for `add`; None: the pictures are paths, which become keys and records.
        Returns:
            of each picture its id, or why it cannot be used.
        """
        if self._model is None:
            raise InputError(f"{self.path}: opened without a model. Pass one to Index.open, or add vectors.")
        pictures = list(images)
        if items is None:
            items = [_picture_item(picture, i) for i, picture in enumerate(pictures)]
        if len(items) != len(pictures):
            raise InputError(f"items: expected one for each of {len(pictures)} pictures, got {len(items)}.")
        results: list[int | InputError] = []
        held: list[tuple[int, Vectors]] = []  # place in the results, vector
        for vector in self._model.embed_each(pictures, color=color, batch_size=batch_size):
            if isinstance(vector, InputError):
                results.append(vector)
                continue
            held.append((len(results), vector))
            results.append(-1)
            if len(held) == ADDED_AT_ONCE:
                self._add_held(held, items, results)
        self._add_held(held, items, results)
        return results

    def _add_held(self, held: list[tuple[int, Vectors]], items: Sequence[Any], results: list[Any]) -> None:
        if held:
            ids = self.add(np.stack([vector for _, vector in held]), [items[place] for place, _ in held])
            for (place, _), number in zip(held, ids, strict=True):
                results[place] = number
            held.clear()

    def remove(self, which: Iterable[str | int]) -> int:
        """Remove by key or id; durable when this returns. What is not there is passed over.

        Returns:
            how many there were.
        Raises:
            InputError: neither keys nor ids, or an index opened for reading.
        """
        wanted = _several(which)
        numbers = [number for one in wanted if (number := _id(one)) is not None]
        with self._lock:
            view = self._now()
            by_key = view.find(one for one in wanted if isinstance(one, str)).values()
            gone = {int(part.ids[row]) for part, row in by_key} | set(view.alive(numbers))
            if gone:
                self._store.remove(sorted(gone))
                self._view = look(self._store, view)
        return len(gone)

    def remove_where(self, where: Where) -> int:
        """Remove whatever meets a condition. Returns how many. Raises InputError without one: {} is for all of them."""
        if where is None:
            raise InputError(
                f"{self.path}: expected a condition on what to remove, got None. All of it: {{}}."
            )
        with self._lock:
            return self.remove(self.ids_where(where).tolist())

    def ids_where(self, where: Where) -> Ids:
        """Ids of the items that meet a condition, ascending."""
        return self._now().ids_where(None if where is None else parse_filter(where))

    def flush(self) -> None:
        """Write what the log holds as a segment, together with segments that are no larger."""
        with self._lock:
            maintenance.flush(self._store, self._now())
            self._view = look(self._store, self._view)

    def _flush_or_tell(self) -> None:
        """What was added lies in the log, and stays there: an error would say that it was not added."""
        try:
            self.flush()
        except InputError as error:
            log.warning("%s: stays in the log for now: %s", self.path, error)

    def settle(self) -> None:
        """What a build ends with: the log becomes a segment, and all become one where searches would compare or pass over many."""
        with self._lock:
            self.flush()
            if maintenance.untidy(self._now(), self.settings):
                self.optimize()

    def optimize(self) -> None:
        """One segment of all that is alive: the fastest search; what was removed leaves the disk."""
        with self._lock:
            maintenance.optimize(self._store, self._now())
            self._view = look(self._store, self._view)

    # --- knowing

    def measure_recall(self, queries: NDArray[Any] | None = None, k: int = 10) -> dict[str, Any]:
        """How much of the exact answer a search finds; kept in the manifest where this index may be written.

        Args:
            queries: (Q, D) vectors such as will be asked; None: 200 of the stored ones, which then do not count themselves.
        Returns:
            "recall": share of the exact k that `search` finds among stored vectors; "stored": share of the k by float32
            vectors that the stored precision keeps, as measured when they were written; "queries", "k", "vectors".
        """
        found = maintenance.measure_recall(self._store, self._now(), queries, k)
        if self._store.writable:
            with self._lock:
                self._store.measured({"recall": found})
        return found

    def measure_variants(self, k: int = 10) -> dict[str, Any]:
        """What queries by the model's own variant find, where another one wrote the index; see `binding.measure_variants`."""
        if self._model is None:
            raise InputError(f"{self.path}: opened without a model. Pass one to Index.open.")
        found = measure_variants(self, self._model, k)
        if found and self._store.writable:
            with self._lock:
                self._store.measured(
                    {"variants": {**self._store.manifest.measured.get("variants", {}), **found}}
                )
        return found

    def info(self) -> dict[str, Any]:
        """JSON-ready facts: items, model, settings, segments, bytes, recall."""
        return maintenance.info(self._store, self._now())

    def verify(self) -> list[str]:
        """Read everything and compare it with its checksums: the problems found, [] for none."""
        return self._store.verify()

    def _now(self) -> View:
        """The newest state."""
        if not self._store.writable:
            with self._lock:
                if self._store.refresh():
                    self._view = look(self._store, self._view)
        return self._view

    def _checked(self, queries: NDArray[Any]) -> Vectors:
        found = np.asarray(queries, np.float32)
        if found.ndim != 2 or found.shape[1] != self.origin.dim:
            raise InputError(f"query: expected (Q, {self.origin.dim}) vectors, got {found.shape}.")
        if not len(self._view.parts) and not np.isfinite(found).all():  # else its search looks
            raise InputError("query: holds a value that is not finite.")
        return found


def _several(keys: Iterable[Any]) -> list[Any]:
    if isinstance(keys, str):  # its letters may be keys too
        raise InputError(f"expected a list of keys, got {keys!r}. One key: [{keys!r}].")
    return list(keys)


def _id(one: object) -> int | None:
    if isinstance(one, str):
        return None
    if isinstance(one, bool) or not isinstance(one, (int, np.integer)):
        raise InputError(f"expected keys and ids, got {one!r}.")
    return int(one)


def _fits(view: View, where: Where) -> list[NDArray[np.bool_]] | None:
    if where is None:
        return None
    tree = parse_filter(where)  # once, and also where there is nothing to filter
    return [part.records.where(tree) for part in view.parts]


def _picture_item(picture: Any, i: int) -> Item:
    if not isinstance(picture, (str, os.PathLike)):
        raise InputError(
            f"images[{i}]: expected a path, got {type(picture).__name__}. Pass items with their keys."
        )
    path = os.fspath(picture)
    record: dict[str, Any] = {"path": path}
    try:
        status = Path(path).stat()
    except OSError:
        return Item(path, record)  # the model says what is wrong with it
    return Item(path, {**record, "size": status.st_size, "mtime": status.st_mtime})
