"""From pictures to vectors of their regions, by boxes or as a detector proposes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclip.errors import EdgeClipError
from edgeclip.runtime.index.regions import region_key, regions_of
from edgeclip.runtime.index.sources.entry import Entry, Unreadable, same_content
from edgeclip.runtime.index.types import Item
from edgeclip.runtime.index.ways import Entries, Made

if TYPE_CHECKING:
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.model import Model

Boxes = Mapping[Path, Sequence[Any]]  # absolute path -> (R, 4) xyxy, pixels of the upright picture

_OWN = ("box", "objectness", "proposals")  # what the record of a region says beside its picture's
_NO_FILE = "regions are taken of picture files. Unpack the pictures into a folder."


class RegionsOf:
    """A vector for each region of a picture, by boxes or as a detector proposes them.

    Args:
        boxes: of pictures by path; others are left out.
        proposals: or so many of a detector's.
        batch_size: pictures in one call of the engine.
    """

    def __init__(self, model: Model, boxes: Boxes | None, proposals: int | None, batch_size: int) -> None:
        self._model, self._boxes, self._proposals, self._batch_size = model, boxes, proposals, batch_size
        self._known: dict[str, list[Item]] | None = None

    def entries(self, entries: Entries) -> Iterator[Entry | Unreadable]:
        """Picture files that have boxes; then the boxes whose picture did not come."""
        left = dict(self._boxes or {})
        for entry in entries:
            if isinstance(entry, Unreadable):
                yield entry
            elif not isinstance(entry.picture, Path):
                yield Unreadable(entry.key, f"{entry.key}: {_NO_FILE}")
            elif self._boxes is None or left.pop(entry.picture, None) is not None:
                yield entry
        for path in left:
            yield Unreadable(
                str(path), f"{path}: has boxes, but the source has no such picture. Check both paths."
            )

    def held(self, index: Index, entries: Sequence[Entry]) -> dict[str, list[Item]]:
        """All the regions of each picture; read once, since they have no key in common."""
        if self._known is None:
            self._known = {}
            for _, item in index.items():
                if (key := self.entry_of(item)) is not None:
                    self._known.setdefault(key, []).append(item)
        return {entry.key: self._known[entry.key] for entry in entries if entry.key in self._known}

    def same(self, index: Index, entry: Entry, held: Sequence[Item]) -> bool:
        """The same file, and the same boxes or as many proposals."""
        if not all(same_content(item.record, entry.record) for item in held):
            return False
        if self._boxes is None:
            return all(item.record.get("proposals") == self._proposals for item in held)
        assert isinstance(entry.picture, Path)
        try:
            wanted = {region_key(entry.key, box) for box in self._boxes[entry.picture]}
        except (TypeError, ValueError):  # boxes that cannot be used: whoever embeds them says why
            return False
        return {item.key for item in held} == wanted

    def again(self, entry: Entry, held: Sequence[Item]) -> list[Item]:
        """Their boxes, with the entry's record."""
        own = [{name: item.record[name] for name in _OWN if name in item.record} for item in held]
        return [Item(item.key, {**facts, **entry.record}) for item, facts in zip(held, own, strict=True)]

    def make(self, entries: Iterator[Entry]) -> Iterator[Made | EdgeClipError]:
        """By the region encoder or the detector."""
        while chunk := list(islice(entries, self._batch_size)):
            paths = [entry.picture for entry in chunk if isinstance(entry.picture, Path)]
            boxes = None if self._boxes is None else [self._boxes[path] for path in paths]
            found = regions_of(
                self._model, paths, boxes=boxes, proposals=self._proposals, batch_size=self._batch_size
            )  # fmt: skip
            for entry, path, made in zip(chunk, paths, found, strict=True):
                if isinstance(made, EdgeClipError):
                    yield made
                else:
                    yield self._renamed(entry, path, made[0]), made[1]

    def entry_of(self, item: Item) -> str | None:
        """The picture's key."""
        return item.key.rpartition("#")[0] if "box" in item.record else None

    def _renamed(self, entry: Entry, path: Path, items: Iterable[Item]) -> list[Item]:
        """Under the entry's key, with the entry's facts."""
        own = {} if self._proposals is None else {"proposals": self._proposals}
        start = len(os.fspath(path))
        return self.again(
            entry, [Item(entry.key + item.key[start:], {**item.record, **own}) for item in items]
        )
