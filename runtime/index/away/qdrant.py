"""`Index`'s calls on a Qdrant collection: in this process, in a folder of this machine, or on a server.

    with QdrantIndex.open("qdrant:http://host:6333/pets", model) as pets:
        pets.search("a red bicycle", k=5)

A target is ":memory:", a folder ("pets.qdrant", or "pets.qdrant#name" for one of several collections in it) or "http://host:6333/name";
"qdrant:" before it is passed over. A server's key comes from $QDRANT_API_KEY. The first two compare every vector, in memory, and know no
quantisation: they are for thousands of vectors, and show the same answers as a server would with `exact`. A folder holds pickles, which
run code when they are opened, so one that has points asks for `allow_pickle`.

A point: the index's id, its vector (cosine), payload {"key", "record"}. The model stands in the collection's metadata (Qdrant 1.16).
One process adds at a time; any number search.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.codecs.kinds import check_vectors
from edgeclip.runtime.index.away.qdrant_client import (
    Place,
    QdrantOptions,
    asking,
    collection_settings,
    connect,
    models_of,
    parse_target,
    search_settings,
)
from edgeclip.runtime.index.away.qdrant_points import NEXT_ID, READ, Points, item_of
from edgeclip.runtime.index.away.vectors import AT_ONCE, Batches, Vectors, origin_facts, read_origin
from edgeclip.runtime.index.types import Hit, Item, Origin, as_items

if TYPE_CHECKING:
    from edgeclip.runtime.model import Model

Where = Any  # filters.Filter | str | Mapping | None, as for an Index
FORMAT = "edgeclip.qdrant 1"


class QdrantIndex:
    """See `create` and `open`."""

    def __init__(
        self, client: Any, place: Place, origin: Origin, options: QdrantOptions, model: Model | None
    ) -> None:
        self._client, self.place, self.points = client, place, Points(client, place)
        self.origin, self.options, self._model = origin, options, model

    @classmethod
    def create(
        cls,
        target: str,
        model: Model | Origin,
        *,
        options: QdrantOptions | None = None,
        overwrite: bool = False,
        allow_pickle: bool = False,
        client: Any = None,
    ) -> QdrantIndex:
        """Make an empty collection.

        Args:
            model: whose vectors it will hold; an Origin where they come ready-made.
            overwrite: drop a collection of this name.
            client: a qdrant_client.QdrantClient to use instead of opening one.
        Raises:
            InputError: the collection is there already, or Qdrant does not answer. MissingExtraError: no qdrant-client.
        """
        from edgeclip.runtime.index.binding import origin_of

        place, chosen = parse_target(target), options or QdrantOptions()
        origin = model if isinstance(model, Origin) else origin_of(model)
        opened = client or connect(place, allow_pickle=allow_pickle)
        try:
            with asking(place):
                if opened.collection_exists(place.collection):
                    if not overwrite:
                        raise InputError(
                            f"{place}: already exists. Choose another name, or pass --overwrite to replace it."
                        )
                    opened.delete_collection(place.collection)
                facts = {"format": FORMAT, "options": asdict(chosen), **origin_facts(origin)}
                opened.create_collection(
                    place.collection,
                    metadata={"edgeclip": facts, NEXT_ID: 0},
                    **collection_settings(place, origin.dim, chosen),
                )
                if place.url:
                    opened.create_payload_index(
                        place.collection, "key", models_of().PayloadSchemaType.KEYWORD
                    )
            return cls._opened(opened, place, None if isinstance(model, Origin) else model)
        except BaseException:
            _ = client or opened.close()
            raise

    @classmethod
    def open(
        cls, target: str, model: Model | None = None, *, allow_pickle: bool = False, client: Any = None
    ) -> QdrantIndex:
        """Open a collection that `create` or `push` made.

        Args:
            model: makes vectors of queries that are texts or pictures; the caller closes it.
            allow_pickle: of a folder: you know who wrote it.
        Raises:
            InputError: no such collection, not edgeclip's, of another model; or Qdrant does not answer.
        """
        place = parse_target(target)
        opened = client or connect(place, allow_pickle=allow_pickle, must_exist=True)
        try:
            return cls._opened(opened, place, model)
        except BaseException:
            _ = client or opened.close()
            raise

    @classmethod
    def ready(
        cls,
        target: str,
        origin: Origin,
        *,
        options: QdrantOptions | None = None,
        overwrite: bool = False,
        allow_pickle: bool = False,
    ) -> QdrantIndex:
        """The collection that is there, or a new one.

        Raises:
            InputError: as `open` and `create`; or one that is there and has other options.
        """
        place = parse_target(target)
        client = connect(place, allow_pickle=allow_pickle)
        try:
            with asking(place):
                there = client.collection_exists(place.collection)
            if overwrite or not there:
                return cls.create(target, origin, options=options, overwrite=overwrite, client=client)
            found = cls.open(target, client=client)
            if options is not None and options != found.options:
                raise InputError(
                    f"{place}: was made with {found.options.quantization} quantization, got {options.quantization}. "
                    "Leave it out, or pass --overwrite."
                )
            return found
        except BaseException:
            client.close()
            raise

    @classmethod
    def _opened(cls, client: Any, place: Place, model: Model | None) -> QdrantIndex:
        with asking(place):
            if not client.collection_exists(place.collection):
                raise InputError(
                    f"{place}: no such collection. `edgeclip index export INDEX -o {place}` makes it."
                )
            config = client.get_collection(place.collection).config
        facts = (config.metadata or {}).get("edgeclip")
        if not isinstance(facts, Mapping) or facts.get("format") != FORMAT:
            raise InputError(
                f"{place}: its metadata names no model of edgeclip's. Expected a collection that edgeclip made, on Qdrant 1.16 or newer."
            )
        vectors = config.params.vectors
        origin = read_origin(facts, int(getattr(vectors, "size", 0)), place)
        if origin is None:
            raise InputError(f"{place}: its metadata names no model. Export the index again.")
        found = cls(client, place, origin, QdrantOptions(**facts.get("options", {})), None)
        if model is not None:
            found.ask_with(model)
        return found

    def __enter__(self) -> QdrantIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def __len__(self) -> int:
        return len(self.points)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.origin.dim

    def ask_with(self, model: Model) -> None:
        """Let this model make vectors of queries. Raises InputError for one that made other vectors than these."""
        from edgeclip.runtime.index.binding import check_model

        check_model(self.place, self.origin, model)
        self._model = model

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
        """As `Index.search`: texts, pictures, a Query or a (D,) vector."""
        vector = self.vector_of(query)
        return self.search_many(vector[None], k, where=where, threshold=threshold, exact=exact)[0]

    def search_many(
        self,
        queries: NDArray[Any],
        k: int = 10,
        *,
        where: Where = None,
        threshold: float | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """As `Index.search_many`. `exact`: no graph and no quantised vectors."""
        from edgeclip.runtime.index.away.qdrant_filters import Wanted

        rows = np.asarray(queries, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.origin.dim or not np.isfinite(rows).all():
            raise InputError(f"query: expected finite (Q, {self.origin.dim}) vectors, got {rows.shape}.")
        if k < 1:
            raise InputError(f"k: expected 1 or more, got {k}.")
        wanted, settings = Wanted.of(where), search_settings(self.place, self.options, exact)
        limit = k if wanted.whole else 4 * k
        found = self.points.ask(rows, limit, wanted.filter, threshold, settings)
        return [
            self._enough(row, hits, k, limit, wanted, threshold, settings)
            for row, hits in zip(rows, found, strict=True)
        ]

    def _enough(
        self,
        row: Vectors,
        found: list[Hit],
        k: int,
        limit: int,
        wanted: Any,
        threshold: float | None,
        settings: Any,
    ) -> list[Hit]:
        """Ask for more and more, until k of them meet what Qdrant cannot say."""
        while True:
            hits = [hit for hit in found if wanted.meets(Item(hit.key, hit.record))]
            if len(hits) >= k or len(found) < limit:
                return hits[:k]
            limit *= 4
            found = self.points.ask(row[None], limit, wanted.filter, threshold, settings)[0]

    def vector_of(self, query: Any) -> Vectors:
        """The (D,) unit vector of whatever `search` takes."""
        from edgeclip.runtime.index.queries import Query, compose_for

        if isinstance(query, np.ndarray) and query.dtype != np.uint8:
            return np.asarray(query, np.float32)
        if isinstance(query, Query):  # of vectors alone it needs no model
            return compose_for(self, self._model, query)
        if self._model is None:
            raise InputError(
                f"{self.place}: opened without a model, so a query is a vector, got {type(query).__name__}. Pass one to QdrantIndex.open."
            )
        if isinstance(query, str):
            return self._model.embed_texts(query)
        return self._model.embed_images(query)

    def get(self, keys: Iterable[str]) -> dict[str, Item]:
        """Key -> item, of those that are there."""
        return {item.key: item for point in self.points.by_keys(keys) for item in [item_of(point)]}

    def vectors(self, keys: Sequence[str]) -> Vectors:
        """(N, D) vectors. Raises InputError for a key that is not there."""
        found = {item_of(point).key: point.vector for point in self.points.by_keys(keys, with_vectors=True)}
        if missing := [key for key in keys if key not in found]:
            raise InputError(f"{self.place}: no item {missing[0]!r}.")
        return np.array([found[key] for key in keys], np.float32).reshape(-1, self.origin.dim)

    def keys(self) -> Iterator[str]:
        """Of all items, by id."""
        return (item.key for _, item in self.items())

    def items(self) -> Iterator[tuple[int, Item]]:
        """(id, item) of all, by id."""
        return ((int(point.id), item_of(point)) for points in self.points.pages(READ) for point in points)

    def batches(self, size: int = AT_ONCE) -> Batches:
        """All items by id, as (n,) ids, (n, D) vectors and n items."""
        for points in self.points.pages(min(size, READ), with_vectors=True):
            ids = np.array([point.id for point in points], np.int64)
            vectors = np.array([point.vector for point in points], np.float32)
            yield ids, vectors, [item_of(point) for point in points]

    # --- changing

    def add(self, vectors: NDArray[Any], items: Sequence[Item | str | Mapping[str, Any]]) -> list[int]:
        """As `Index.add`. Returns when Qdrant has written them."""
        whole, rows = as_items(items), check_vectors(vectors, self.origin.dim)
        if len(rows) != len(whole):
            raise InputError(f"items: expected one for each of {len(rows)} vectors, got {len(whole)}.")
        ids = self.points.take_ids(len(whole))
        self.points.put(np.array(ids, np.int64), rows, whole)
        return ids

    def remove(self, which: Iterable[str | int]) -> int:
        """Remove by key or id. Returns how many there were."""
        wanted = list(which)
        gone = {int(point.id) for point in self.points.by_keys(one for one in wanted if isinstance(one, str))}
        gone |= self.points.present([int(one) for one in wanted if not isinstance(one, str)]).keys()
        self.points.delete(sorted(gone))
        return len(gone)

    def remove_where(self, where: Where) -> int:
        """Remove whatever meets a condition. Returns how many. Raises InputError without one: {} is for all of them."""
        if where is None:
            raise InputError(
                f"{self.place}: expected a condition on what to remove, got None. All of it: {{}}."
            )
        from edgeclip.runtime.index.away.qdrant_filters import Wanted

        wanted = Wanted.of(where)
        gone: list[int] = []
        for points in self.points.pages(READ, scroll_filter=wanted.filter):
            gone += [int(point.id) for point in points if wanted.meets(item_of(point))]
        self.points.delete(gone)
        return len(gone)

    def info(self) -> dict[str, Any]:
        """JSON-ready facts: where, items, model, options."""
        return {
            "path": str(self.place),
            "items": len(self),
            "model": {"model_id": self.origin.model_id, "name": self.origin.name, "dim": self.origin.dim},
            "options": asdict(self.options),
        }
