"""The points of a Qdrant collection: items in and out, in requests of a bearable size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from edgeclip.runtime.index.away.qdrant_client import Place, asking, models_of
from edgeclip.runtime.index.away.texts import each_text, from_utf8, to_utf8
from edgeclip.runtime.index.away.vectors import AT_ONCE, Ids, Vectors
from edgeclip.runtime.index.types import Hit, Item

READ = 1024  # points in one answer
SENT = 256  # points in one request: 1 MB of JSON at width 512, far below a server's 32 MB
NEXT_ID = "edgeclip_next_id"  # in the collection's metadata


class Points:
    """Reads and writes them; ids are never given twice."""

    def __init__(self, client: Any, place: Place) -> None:
        self._client, self.place = client, place

    def __len__(self) -> int:
        with asking(self.place):
            return int(self._client.count(self.place.collection, exact=True).count)

    def ask(
        self, rows: Vectors, k: int, condition: Any, threshold: float | None, settings: Any
    ) -> list[list[Hit]]:
        """The k nearest of those that meet a qdrant_client.models.Filter, for each row; equal ones by id."""
        requests = [
            models_of().QueryRequest(
                query=row.tolist(),
                limit=k,
                filter=condition,
                params=settings,
                with_payload=True,
                score_threshold=threshold,
            )
            for row in rows
        ]
        found: list[Any] = []
        for first in range(0, len(requests), SENT):
            with asking(self.place):
                found += self._client.query_batch_points(
                    self.place.collection, requests[first : first + SENT]
                )
        return [sorted(map(_hit, one.points), key=lambda hit: (-hit.score, hit.id)) for one in found]

    def pages(self, size: int, **settings: Any) -> Iterator[list[Any]]:
        """All of them by id, as Qdrant gives them, `size` at a time."""
        after: Any = None
        while True:
            with asking(self.place):
                points, after = self._client.scroll(
                    self.place.collection, limit=size, offset=after, **settings
                )
            if points:
                yield points
            if after is None:
                return

    def by_keys(self, keys: Iterable[str], **settings: Any) -> Iterator[Any]:
        """Those with these keys, as Qdrant gives them."""
        wanted = [to_utf8(key) for key in dict.fromkeys(keys)]
        for first in range(0, len(wanted), SENT):
            part = wanted[first : first + SENT]
            with asking(self.place):
                # twice as many as keys: an add that was cut short leaves an old point beside the new one
                points, _ = self._client.scroll(
                    self.place.collection, _key_is(part), limit=2 * len(part), **settings
                )
            yield from points  # by id, so that of two the newer is last

    def put(self, ids: Ids, vectors: Vectors, items: Sequence[Item]) -> None:
        """Write items under ids of the caller's; other points with their keys go."""
        models = models_of()
        for first in range(0, len(ids), SENT):
            part = slice(first, first + SENT)
            points = [
                models.PointStruct(id=number, vector=row, payload=_payload(item))
                for number, row, item in zip(
                    ids[part].tolist(), vectors[part].tolist(), items[part], strict=True
                )
            ]
            old = _key_is([point.payload["key"] for point in points], besides=[point.id for point in points])
            with asking(self.place):
                self._client.upsert(self.place.collection, points, wait=True)
                self._client.delete(self.place.collection, models.FilterSelector(filter=old), wait=True)

    def take_ids(self, count: int) -> list[int]:
        """New ids, in order."""
        with asking(self.place):
            first = self._next_id()
            self._client.update_collection(self.place.collection, metadata={NEXT_ID: first + count})
        return list(range(first, first + count))

    def reserve(self, next_id: int) -> None:
        """Ids below it are not given any more."""
        with asking(self.place):
            if next_id > self._next_id():
                self._client.update_collection(self.place.collection, metadata={NEXT_ID: next_id})

    def _next_id(self) -> int:
        return int(self._client.get_collection(self.place.collection).config.metadata[NEXT_ID])

    def present(self, ids: Sequence[int]) -> dict[int, str]:
        """Id -> key, of those that are there."""
        found: dict[int, str] = {}
        for first in range(0, len(ids), SENT):
            with asking(self.place):
                points = self._client.retrieve(
                    self.place.collection, ids[first : first + SENT], with_payload=["key"]
                )
            found |= {int(point.id): from_utf8(point.payload["key"]) for point in points}
        return found

    def delete(self, ids: Sequence[int]) -> None:
        """Returns when they are gone."""
        for first in range(0, len(ids), AT_ONCE):
            chosen = models_of().PointIdsList(points=list(ids[first : first + AT_ONCE]))
            with asking(self.place):
                self._client.delete(self.place.collection, chosen, wait=True)


def _payload(item: Item) -> dict[str, Any]:
    return {"key": to_utf8(item.key), "record": each_text(dict(item.record), to_utf8)}


def item_of(point: Any) -> Item:
    """What `put` was given."""
    return Item(from_utf8(point.payload["key"]), each_text(point.payload["record"], from_utf8))


def _hit(point: Any) -> Hit:
    item = item_of(point)
    return Hit(item.key, float(point.score), int(point.id), item.record)


def _key_is(keys: list[str], besides: list[int] | None = None) -> Any:
    models = models_of()
    one_of = models.FieldCondition(key="key", match=models.MatchAny(any=keys))
    return models.Filter(must=[one_of], must_not=[models.HasIdCondition(has_id=besides)] if besides else None)
