"""Regions of pictures in an index: each one an item, whose record tells its picture and its box.

items, rows = next(regions_of(model, ["a.jpg"], proposals=20))
best_of_each(lambda k: index.search("a wheel", k), 10, len(index))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.detect.nms import nms
from edgeclip.runtime.index.types import Hit, Item

if TYPE_CHECKING:
    from edgeclip.runtime.model import Model

Vectors = NDArray[np.float32]
Found = tuple[list[Item], Vectors]  # of one picture: R items, (R, D) unit rows
Pictures = Sequence["str | os.PathLike[str]"]

OVERLAP = 0.5  # of two proposals that overlap by more (IoU) the one with the better objectness stays


def regions_of(
    model: Model,
    pictures: Pictures,
    *,
    boxes: Sequence[ArrayLike] | None = None,
    proposals: int | None = None,
    batch_size: int = 8,
) -> Iterator[Found | InputError]:
    """The regions of each picture as items and vectors, or its error.

    Args:
        pictures: paths.
        boxes: (R, 4) xyxy in pixels for each picture; or else
        proposals: take so many of what a detector proposes in each.
        batch_size: pictures in one call of the engine.
    Raises:
        InputError: boxes and proposals, or neither; a detector that does not judge what it proposes.
        EngineError: the bundle has neither a region encoder nor a detector.
    """
    if (boxes is None) == (proposals is None):
        raise InputError("regions: expected either boxes or a number of proposals.")
    if proposals is not None:
        if proposals < 1:
            raise InputError(f"proposals: expected 1 or more, got {proposals}.")
        return (_proposed(model, picture, proposals) for picture in pictures)
    assert boxes is not None
    if len(boxes) != len(pictures):
        raise InputError(f"boxes: expected one list for each of {len(pictures)} pictures, got {len(boxes)}.")
    return _boxed(model, pictures, boxes, batch_size)


def region_key(path: str, box: Sequence[float]) -> str:
    """What names a region: "path#left,top,right,bottom", pixels to a hundredth."""
    return f"{path}#{','.join(f'{round(float(x), 2):.8g}' for x in box)}"


def best_of_each(search: Callable[[int], list[Hit]], k: int, total: int) -> list[Hit]:
    """The best region of each of k pictures, best first.

    Args:
        search: the best so many hits.
        total: items of the index: more are never asked for.
    """
    asked = 4 * k
    while True:
        hits = search(min(asked, max(total, 1)))
        best: dict[str, Hit] = {}
        for hit in hits:
            best.setdefault(picture_of(hit), hit)
        if len(best) >= k or asked >= total or len(hits) < asked:
            return list(best.values())[:k]
        asked *= 4


def picture_of(item: Hit | Item) -> str:
    """What names the picture that an item is, or lies in: its key, of a region without the box."""
    return item.key.rpartition("#")[0] if "box" in item.record else item.key


def _boxed(
    model: Model, pictures: Pictures, boxes: Sequence[ArrayLike], batch_size: int
) -> Iterator[Found | InputError]:
    found = model.embed_regions_each(pictures, boxes, batch_size=batch_size)
    for path, own, rows in zip(pictures, boxes, found, strict=True):
        if isinstance(rows, InputError):
            yield rows
        else:
            yield _unique(path, np.asarray(own, np.float64).reshape(-1, 4), rows, {})


def _proposed(model: Model, path: str | os.PathLike[str], most: int) -> Found | InputError:
    try:
        seen = model.propose(path)
    except InputError as error:
        return error
    if seen.objectness is None:
        raise InputError(
            "proposals: this detector does not judge its regions (it has no objectness), so the best of them are not known. "
            "Pass boxes; `edgeclip detect --json` writes them."
        )
    best = nms(seen.boxes, seen.objectness, np.zeros(len(seen), np.int64), OVERLAP, most=most)
    return _unique(path, seen.boxes[best], seen.embeddings[best], {"objectness": seen.objectness[best]})


def _unique(path: Any, boxes: NDArray[Any], rows: Vectors, facts: dict[str, NDArray[Any]]) -> Found:
    """As items; of boxes that are the same to a hundredth of a pixel one."""
    name, shared = os.fspath(path), _file_facts(path)
    items: dict[str, tuple[int, Item]] = {}
    for i, box in enumerate(boxes.tolist()):
        own = {key: round(float(values[i]), 4) for key, values in facts.items()}
        record = {**shared, "box": [round(x, 2) for x in box], **own}
        items.setdefault(region_key(name, box), (i, Item(region_key(name, box), record)))
    return [item for _, item in items.values()], rows[[i for i, _ in items.values()]]


def _file_facts(path: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"path": os.fspath(path)}
    try:
        status = Path(path).stat()
    except OSError:  # it was read a moment ago, and is gone: what was seen is still true
        return facts
    return {**facts, "size": status.st_size, "mtime": status.st_mtime}
