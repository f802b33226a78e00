"""An index in memory, for what is exported and pushed: just what an export reads, in plain lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.runtime.index.types import IndexSettings, Item, Origin
from tests.vectors import clip_like

ORIGIN = Origin(
    "ab" * 32, "toy", 16, ("image-fp32", "text-fp32"), {"size": [32, 32], "mean": [0.5, 0.4, 0.3]}
)
ODD = "caf\udce9.jpg"  # a file name that is no Unicode


class InMemory:
    """ids with gaps, as after removals."""

    def __init__(self, vectors: NDArray[np.float32], items: list[Item], origin: Origin = ORIGIN) -> None:
        self.vectors_, self.items_, self.origin, self.settings = vectors, items, origin, IndexSettings()
        self.ids = np.arange(len(items), dtype=np.int64) * 3 + 5

    def __len__(self) -> int:
        return len(self.items_)

    def items(self) -> Iterator[tuple[int, Item]]:
        return iter(zip(self.ids.tolist(), self.items_, strict=True))

    def batches(self, size: int = 4096) -> Iterator[tuple[Any, Any, list[Item]]]:
        for first in range(0, len(self), size):
            part = slice(first, first + size)
            yield self.ids[part], self.vectors_[part], self.items_[part]


def records(count: int) -> list[Item]:
    """Items whose records hold what JSON can."""
    found = []
    for i in range(count):
        record: dict[str, Any] = {
            "path": f"p/{i}.jpg",
            "size": 1000 + i,
            "mtime": i + 0.5,
            "sharp": i % 2 == 0,
        }
        if i % 3 == 0:
            record |= {"caption": f'Ünïcode {i} "quoted"', "tags": ["a", i], "exif": {"iso": 100 * i}}
        if i % 4 == 0:
            record |= {
                "mixed": "text" if i % 8 else i,
                "none": None,
                "huge": 2**60,
                "id": i,
                "record": "mine",
            }
        found.append(Item(f"p/{i}.jpg", record))
    return found


def small(count: int = 50) -> InMemory:
    """`count` vectors of width 16."""
    items = records(count)
    items[1] = Item(ODD, {"path": ODD, "size": 1})
    items[2] = Item('json:"x"', {"path": 'json:"x"', 'json:"n"': 1})
    return InMemory(clip_like(count, 16), items)
