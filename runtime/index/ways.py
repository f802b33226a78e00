"""The ways from a source's entries to vectors: of pictures, of captions, or ready-made ones; `region_way.py`: of regions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import EdgeClipError, InputError
from edgeclip.runtime.index.sources.entry import Entry, Unreadable, same_content
from edgeclip.runtime.index.types import Item

if TYPE_CHECKING:
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.model import Model

Vectors = NDArray[np.float32]
Made = tuple[list[Item], Vectors]  # of one entry: R items, (R, D) unit rows
Entries = Iterable[Entry | Unreadable]

_TEXTS = 64  # embedded in one call
_SAME = 0.999  # cosine of a ready-made vector and the stored one: int8 loses less


class Way(Protocol):
    """What a build needs to know of one way."""

    def entries(self, entries: Entries) -> Iterator[Entry | Unreadable]:
        """A source's entries as this way takes them."""
        ...

    def held(self, index: Index, entries: Sequence[Entry]) -> dict[str, list[Item]]:
        """An entry's key -> items that the index holds of it, where there are any."""
        ...

    def same(self, index: Index, entry: Entry, held: Sequence[Item]) -> bool:
        """Whether the vectors of these items are still the entry's."""
        ...

    def again(self, entry: Entry, held: Sequence[Item]) -> list[Item]:
        """These items with what the entry says now."""
        ...

    def make(self, entries: Iterator[Entry]) -> Iterator[Made | EdgeClipError]:
        """Items and vectors of each entry, or its error, in order."""
        ...

    def entry_of(self, item: Item) -> str | None:
        """The key of the entry that an item came from; None where it did not come this way."""
        ...


class _OneEach:
    """An item for each entry, under its key."""

    def held(self, index: Index, entries: Sequence[Entry]) -> dict[str, list[Item]]:
        """By key."""
        return {key: [item] for key, item in index.get(entry.key for entry in entries).items()}

    def again(self, entry: Entry, held: Sequence[Item]) -> list[Item]:
        """With the entry's record."""
        return [Item(entry.key, entry.record)]


class WholePictures(_OneEach):
    """A vector for each picture.

    Args:
        batch_size: pictures in one call of the engine.
    """

    def __init__(self, model: Model, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size

    def entries(self, entries: Entries) -> Iterator[Entry | Unreadable]:
        """Those with a picture."""
        for entry in entries:
            if isinstance(entry, Entry) and entry.picture is None:
                yield Unreadable(
                    entry.key, f"{entry.key}: has no picture, only a caption. Pass --captions to embed those."
                )
            else:
                yield entry

    def same(self, index: Index, entry: Entry, held: Sequence[Item]) -> bool:
        """By hash, or by size and time."""
        return same_content(held[0].record, entry.record)

    def make(self, entries: Iterator[Entry]) -> Iterator[Made | EdgeClipError]:
        """By the image tower, which works while the next pictures are decoded where its engine can."""
        waiting: deque[Entry] = deque()

        def pictures() -> Iterator[Any]:
            for entry in entries:
                waiting.append(entry)
                yield entry.picture

        for vector in self._model.embed_each(pictures(), batch_size=self._batch_size):
            entry = waiting.popleft()
            yield (
                vector
                if isinstance(vector, EdgeClipError)
                else ([Item(entry.key, entry.record)], vector[None])
            )

    def entry_of(self, item: Item) -> str | None:
        """Its own key."""
        return None if "box" in item.record or "of" in item.record else item.key


class Captions(_OneEach):
    """A vector for each caption: "a.jpg#caption1" and so on, whose record names its picture as `of`."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def entries(self, entries: Entries) -> Iterator[Entry | Unreadable]:
        """One for each caption."""
        for entry in entries:
            if isinstance(entry, Unreadable) or entry.picture is None:
                yield entry
            elif not entry.captions:
                yield Unreadable(entry.key, f"{entry.key}: has no caption.")
            else:
                facts = {name: value for name, value in entry.record.items() if name != "captions"}
                for number, text in enumerate(entry.captions, 1):
                    yield Entry(f"{entry.key}#caption{number}", {**facts, "of": entry.key, "caption": text})

    def same(self, index: Index, entry: Entry, held: Sequence[Item]) -> bool:
        """By the words."""
        return bool(held[0].record.get("caption") == entry.record["caption"])

    def make(self, entries: Iterator[Entry]) -> Iterator[Made | EdgeClipError]:
        """By the text tower."""
        while chunk := list(islice(entries, _TEXTS)):
            vectors = self._model.embed_texts([entry.record["caption"] for entry in chunk])
            for entry, vector in zip(chunk, vectors, strict=True):
                yield [Item(entry.key, entry.record)], vector[None]

    def entry_of(self, item: Item) -> str | None:
        """Its own key."""
        return item.key if "of" in item.record or "path" not in item.record else None


class ReadyMade(_OneEach):
    """The vectors that a source holds, made unit length: (dim,) each."""

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def entries(self, entries: Entries) -> Iterator[Entry | Unreadable]:
        """All."""
        return iter(entries)

    def same(self, index: Index, entry: Entry, held: Sequence[Item]) -> bool:
        """By cosine."""
        vector = entry.vector
        if vector is None or vector.shape != (index.origin.dim,):
            return False
        return bool(index.vectors([entry.key])[0] @ vector >= _SAME * np.linalg.norm(vector))

    def make(self, entries: Iterator[Entry]) -> Iterator[Made | EdgeClipError]:
        """No model is asked."""
        for entry in entries:
            vector = entry.vector
            if vector is None or vector.shape != (self._dim,):
                got = "none" if vector is None else str(len(vector))
                yield InputError(f"{entry.key}: expected a vector of width {self._dim}, got {got}.")
            else:
                yield [Item(entry.key, entry.record)], (vector / np.linalg.norm(vector))[None]

    def entry_of(self, item: Item) -> str | None:
        """Its own key."""
        return item.key
