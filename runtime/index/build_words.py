"""How an index is built, how far that is, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeclip.errors import InputError
from edgeclip.runtime.index.region_way import Boxes
from edgeclip.runtime.index.ways import Way


@dataclass(frozen=True)
class BuildSettings:
    """How a source is worked through. Raises InputError for what contradicts itself."""

    batch_size: int = 8  # pictures in one call of the engine
    captions: bool = False  # embed the source's captions, an item each, not its pictures
    boxes: Boxes | None = None  # embed these regions of its pictures, an item each
    proposals: int | None = None  # or so many regions that a detector proposes in each
    update: bool = True  # False: a key that is there is not looked at again
    prune: bool = False  # remove items of this source that it does not have any more
    trust: bool = False  # ready-made vectors are the model's, whatever their file says or does not
    # where vectors are made: away/ray_build.py has one such; None: in this process
    elsewhere: Callable[[Way], Way] | None = None

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("proposals", self.proposals)):
            if value is not None and value < 1:
                raise InputError(f"{name}: expected 1 or more, got {value}.")
        if self.captions + (self.boxes is not None) + (self.proposals is not None) > 1:
            raise InputError("captions, boxes, proposals: expected one of them at most.")


@dataclass
class Progress:
    """How far a build is; the same object all the time. Counts of vectors, but where it says otherwise."""

    total: int | None  # entries; None: not known
    done: int = 0  # entries
    added: int = 0  # under keys that were not there
    updated: int = 0  # in the place of others, or with another record beside the same vector
    unchanged: int = 0
    removed: int = 0
    embedded: int = 0  # entries that were embedded
    failures: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)


@dataclass(frozen=True)
class BuildReport:
    """What a build did. Counts are of vectors: of pictures, regions or captions."""

    added: int
    updated: int  # changed pictures embedded anew, or other facts kept beside the same vector
    unchanged: int
    removed: int
    failures: list[tuple[str, str]]  # (key, reason)
    embedded: int  # pictures or captions that a model was asked for
    seconds: float  # from the first entry to the last write
    rate: float  # embedded / seconds
    recall: Mapping[str, Any] | None  # Index.measure_recall; None: fewer than two items, or nothing changed

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        failures = [{"key": key, "error": reason} for key, reason in self.failures]
        figures = {"seconds": round(self.seconds, 3), "rate": round(self.rate, 1)}
        return {**asdict(self), **figures, "failures": failures}
