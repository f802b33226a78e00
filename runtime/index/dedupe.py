"""Near-duplicates in an index: found by cosine, or by the bytes of their files; one of each is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeclip.errors import InputError
from edgeclip.files import sha256_file
from edgeclip.runtime.index.components import (
    ROUNDING,
    Numbers,
    Progress,
    Rows,
    Vectors,
    check_threshold,
    collect,
    join_near,
)
from edgeclip.runtime.index.places import file_of
from edgeclip.runtime.index.types import Hit, Item

if TYPE_CHECKING:
    from edgeclip.runtime.index.index import Index

# what is kept: (field of the record, the greatest first?); the item that was added first where two are equal
KEEP: dict[str, tuple[str, bool] | None] = {
    "first": None,
    "largest": ("size", True),
    "newest": ("mtime", True),
    "oldest": ("mtime", False),
}
# a copy's greatest distance as a share of that between two unrelated pictures. LAION's 0.94 is 0.12: unrelated ones have 0.5 in CLIP
FAR, NEAREST_FAR, FARTHEST_FAR = 0.12, 0.03, 0.25
STEPS = 49  # shares that are tried between the two
NEIGHBOURS = 4  # of an item: where each has one copy, the second is a mere neighbour
AROUND = 1.25  # times as far and as near: what a share must be clear of
SAMPLE = 2000  # items that a suggestion looks at


@dataclass(frozen=True)
class Suggestion:
    """A threshold for this model and these pictures."""

    threshold: float  # cosine
    unrelated: float  # median cosine of two items taken at random
    nearest: dict[str, float]  # percentiles of the cosine between an item and its nearest: "50", "90", "99"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"threshold": self.threshold, "unrelated": self.unrelated, "nearest": self.nearest}


@dataclass(frozen=True)
class Group:
    """One item that is kept, and what it stands for."""

    kept: Hit  # score 1
    copies: tuple[Hit, ...]  # score: cosine to the kept one, highest first

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"kept": self.kept.to_dict(), "copies": [copy.to_dict() for copy in self.copies]}


@dataclass(frozen=True)
class Duplicates:
    """What is there more than once."""

    threshold: float | None  # cosine; None: by the bytes of files
    items: int  # that were compared
    groups: tuple[Group, ...]  # those with the most copies first
    unread: tuple[tuple[str, str], ...] = ()  # (key, reason): files that could not be compared

    @property
    def copies(self) -> list[Hit]:
        """What may go."""
        return [copy for group in self.groups for copy in group.copies]

    def remove_from(self, index: Index) -> int:
        """Remove the copies from an index open for writing, in one durable step. Files stay. Returns how many there were."""
        return index.remove([copy.id for copy in self.copies])


def suggest_threshold(rows: Rows, *, sample: int = SAMPLE, seed: int = 0) -> Suggestion:
    """A threshold that suits the model and the pictures: what is near in one model is far in another.

    Copies and mere neighbours are two heaps of distances to the NEIGHBOURS nearest. The threshold lies where there are fewest,
    between NEAREST_FAR and FARTHEST_FAR of the distance of two unrelated items, as near to FAR as that allows. With CLIP L/14 and no
    copies at all that is LAION's 0.94; a model whose unrelated pictures have a cosine of 0.1 gets 0.89.

    Args:
        sample: items that are looked at.
    Raises:
        InputError: fewer than two items.
    """
    rows = rows.pinned()
    ids = rows.ids_where(None)
    if len(ids) < 2:
        raise InputError(f"dedupe: needs two items at least, the index holds {len(ids)}.")
    random = np.random.default_rng(seed)
    wanted = np.sort(random.choice(ids, min(sample, len(ids)), replace=False))
    vectors, _ = collect(rows, wanted)
    other = np.roll(random.permutation(len(vectors)), 1)
    pairs = np.einsum("nd,nd->n", vectors[np.roll(other, -1)], vectors[other])
    found, cosines = rows.search_ids(vectors, min(1 + NEIGHBOURS, len(ids)))
    cosines[(found == wanted[:, None]) | (found < 0)] = -np.inf  # itself
    near = -np.sort(-cosines, axis=1)[:, :-1]
    nearest = near[:, 0]
    unrelated = float(np.median(pairs))
    shares = np.geomspace(NEAREST_FAR, FARTHEST_FAR, STEPS)
    apart = np.sort(1 - near[np.isfinite(near)]) / max(1 - unrelated, ROUNDING)
    crowd = np.searchsorted(apart, shares * AROUND) - np.searchsorted(apart, shares / AROUND)
    share = min(zip(crowd.tolist(), np.abs(np.log(shares / FAR)).tolist(), shares.tolist(), strict=True))[2]
    return Suggestion(
        round(1 - share * (1 - unrelated), 3),
        round(unrelated, 3),
        {str(p): round(float(np.percentile(nearest, p)), 3) for p in (50, 90, 99)},
    )


def find_duplicates(
    rows: Rows,
    threshold: float | None = None,
    *,
    keep: str = "first",
    chain: bool = False,
    exact: bool = False,
    progress: Progress | None = None,
) -> Duplicates:
    """Find items that are nearly the same.

    Within each component of `join_near` items are looked at in the order of `keep`: one that is nearer than the threshold to an item
    already kept is its copy. So a copy is never farther than the threshold from what stands for it, no two kept ones are nearer, and
    asking again after removing finds nothing.

    Args:
        threshold: least cosine of a copy and the one that is kept; 1: equal vectors; None: `suggest_threshold`.
        keep: an entry of KEEP.
        chain: keep one of each component, however far it is from the last: a film becomes its first frame.
        exact: compare every vector, where an index would walk a graph.
    Raises:
        InputError: an unknown rule, one whose field no item has, or no cosine.
    """
    rows = rows.pinned()
    limit = suggest_threshold(rows).threshold if threshold is None else check_threshold(threshold)
    _check_rule(keep)
    parts = join_near(rows, limit, exact=exact, progress=progress)
    groups = parts.groups()
    members = np.sort(np.concatenate([parts.ids[group] for group in groups] or [np.empty(0, np.int64)]))
    vectors, items = collect(rows, members)
    _check_field(keep, items)
    found: list[Group] = []
    for group in groups:
        places = np.searchsorted(members, parts.ids[group])
        order = _by_rule(keep, places, items)
        found += _split(order, members, vectors, items, -1.0 if chain else limit - ROUNDING)
    return Duplicates(limit, len(parts.ids), _sorted(found))


def _split(
    order: Sequence[int], ids: Numbers, vectors: Vectors, items: Sequence[Item], least: float
) -> Iterator[Group]:
    """The first stands for all that are near it, the first of the rest for those near it, and so on."""
    left = np.array(order)
    while len(left):
        cosines = np.minimum(vectors[left] @ vectors[left[0]], 1)
        near = cosines >= least
        near[0] = True  # stored with fewer bits, a row's product with itself may fall short
        copies = [
            _hit(i, ids, items, float(c)) for i, c in zip(left[near][1:], cosines[near][1:], strict=True)
        ]
        if copies:
            yield Group(_hit(left[0], ids, items, 1.0), tuple(sorted(copies, key=lambda hit: -hit.score)))
        left = left[~near]


def find_identical(rows: Rows, *, keep: str = "first") -> Duplicates:
    """Find items whose files hold the same bytes. Only files of a size that comes twice are read.

    Regions of pictures, whose records have a box, are left out: they share their file and are not the same.

    Args:
        keep: an entry of KEEP.
    Raises:
        InputError: an unknown rule, one whose field no item has, or an index none of whose items is a file.
    """
    _check_rule(keep)
    ids, items = list[int](), list[Item]()
    for numbers, _, some in rows.batches():
        whole = [i for i, item in enumerate(some) if "box" not in item.record]
        ids += numbers[whole].tolist()
        items += [some[i] for i in whole]
    unread: dict[int, str] = {}
    same_size = _alike(range(len(items)), lambda i: _size(items[i]), unread)
    same = [group for part in same_size for group in _alike(part, lambda i: _digest(items[i]), unread)]
    if items and len(unread) == len(items):
        raise InputError(
            f"{items[0].key}: {unread[0]}. None of {len(items)} items has a file here; compare vectors instead."
        )
    _check_field(keep, [items[i] for group in same for i in group])
    numbers, found = np.array(ids, np.int64), list[Group]()
    for group in same:
        first, *rest = (_hit(i, numbers, items, 1.0) for i in _by_rule(keep, group, items))
        found.append(Group(first, tuple(rest)))
    return Duplicates(
        None, len(items), _sorted(found), tuple((items[i].key, why) for i, why in unread.items())
    )


def _alike(places: Iterable[int], of: Callable[[int], Any], unread: dict[int, str]) -> list[list[int]]:
    """Places that have something in common with another."""
    found: dict[Any, list[int]] = {}
    for i in places:
        try:
            found.setdefault(of(i), []).append(i)
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
            unread[i] = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return [group for group in found.values() if len(group) > 1]


def _size(item: Item) -> int:
    inside = _inside(item)
    return inside[0] if inside else _file(item).stat().st_size


def _digest(item: Item) -> str:
    inside = _inside(item)
    return inside[1] if inside else sha256_file(_file(item))


def _inside(item: Item) -> tuple[int, str] | None:
    """Size and SHA-256 of a picture in a shard or a table, as its record tells them."""
    size, digest = item.record.get("size"), item.record.get("sha256")
    return (size, digest) if isinstance(size, int) and isinstance(digest, str) else None


def _file(item: Item) -> Path:
    file = file_of(item)
    if file is None:
        raise OSError("it names no file")
    return file


def _hit(place: Any, ids: Numbers, items: Sequence[Item], score: float) -> Hit:
    item = items[int(place)]
    return Hit(item.key, score, int(ids[place]), item.record)


def _sorted(groups: Iterable[Group]) -> tuple[Group, ...]:
    return tuple(sorted(groups, key=lambda group: (-len(group.copies), group.kept.id)))


def _check_rule(keep: str) -> None:
    if keep not in KEEP:
        raise InputError(f"keep {keep!r}: unknown. Choose from {', '.join(KEEP)}.")


def _check_field(keep: str, items: Sequence[Item]) -> None:
    rule = KEEP[keep]
    if rule and items and not any(_number(item, rule[0]) is not None for item in items):
        raise InputError(f"keep {keep!r}: no duplicate has {rule[0]!r} in its record. Choose 'first'.")


def _by_rule(keep: str, places: Iterable[int], items: Sequence[Item]) -> list[int]:
    """The places, the one to keep first; those without the rule's field last."""
    rule = KEEP[keep]
    order = sorted(int(place) for place in places)
    if rule is None:
        return order
    field, greatest = rule

    def rank(place: int) -> float:
        value = _number(items[place], field)
        return np.inf if value is None else -value if greatest else value

    return sorted(order, key=rank)  # stable: the first added where two are equal


def _number(item: Item, field: str) -> float | None:
    value = item.record.get(field)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
