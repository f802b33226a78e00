"""The words of an index: what is stored, what is found, what it was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeclip.errors import InputError

FORMAT, VERSION = "edgeclip.index", 1
Precision = Literal["fp16", "int8", "bits"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8", "bits")


@dataclass(frozen=True)
class Item:
    """What is stored beside a vector."""

    key: str  # names it within the index: of a picture its path; of a region "path#left,top,right,bottom"
    # JSON: path, size, mtime, caption, box, the user's own fields
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """One answer of a search."""

    key: str
    score: float  # cosine of query and stored vector
    id: int  # never given twice, also not after a removal
    record: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. A record's own field of the name of one of these three is called record.key and so on."""
        own = {"key": self.key, "score": round(self.score, 6), "id": self.id}
        return own | {f"record.{name}" if name in own else name: value for name, value in self.record.items()}


@dataclass(frozen=True)
class IndexSettings:
    """Everything that may be chosen when an index is made; kept in its manifest. Raises InputError for one that cannot be used."""

    precision: Precision = "fp16"  # of stored vectors; "bits" ranks by signs and then again in fp16
    # vectors of one segment up to which every one is compared; above it a graph is walked (HNSW)
    exact_below: int = 50_000
    connectivity: int = 16  # HNSW's M: links of a node and level
    expansion_add: int = 400  # HNSW's ef while it is built
    expansion_search: int = (
        64  # HNSW's ef of a search: more finds more, slower; grows with graphs above 100,000
    )
    oversample: int = 40  # "bits": so many times k candidates are compared in fp16
    flush_at: int = 8192  # vectors in the log at which they become a segment

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision {self.precision!r}: unknown. Choose from {', '.join(PRECISIONS)}.")
        for name in ("connectivity", "expansion_add", "expansion_search", "oversample", "flush_at"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected 1 or more, got {getattr(self, name)}.")
        if self.exact_below < 0:
            raise InputError(f"exact_below: expected 0 or more, got {self.exact_below}.")


@dataclass(frozen=True)
class Origin:
    """The model whose vectors an index holds."""

    model_id: str  # as in the bundle's manifest
    name: str
    dim: int
    variants: tuple[str, ...] = ()  # ids of the variants that wrote vectors, e.g. ("image-fp32-decomposed",)
    preprocessing: Mapping[str, Any] | None = None


def as_items(given: Sequence[Item | str | Mapping[str, Any]]) -> list[Item]:
    """Items of what `add` takes: a str is a key, a mapping a record with its "key", or else its "path".

    Raises:
        InputError: one without either, or a key twice.
    """
    found = [_as_item(one, i) for i, one in enumerate(given)]
    seen: set[str] = set()
    for item in found:
        if item.key in seen:
            raise InputError(f"items: key {item.key!r} is there twice.")
        seen.add(item.key)
    return found


def _as_item(one: Item | str | Mapping[str, Any], i: int) -> Item:
    if isinstance(one, Item) and isinstance(one.key, str):
        return one
    if isinstance(one, str):
        return Item(one)
    if not isinstance(one, Mapping):
        raise InputError(f"items[{i}]: expected a key, a record or an Item, got {one!r}.")
    key = one.get("key", one.get("path"))
    if not isinstance(key, str):
        raise InputError(
            f"items[{i}]: expected a key or a path, got {', '.join(map(str, one)) or 'nothing'}."
        )
    return Item(key, {name: value for name, value in one.items() if name != "key"})
