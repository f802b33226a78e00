"""What an index can keep and give back as it was: vectors of length 1, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.types import Item

MAX_NESTING = 100  # of a record; SQLite's JSON takes 1000


def check_addition(vectors: ArrayLike, items: Sequence[Item], dim: int) -> NDArray[np.float32]:
    """What an index is asked to keep, in one go.

    Args:
        vectors: (N, D) rows of L2 norm 1.
        items: N, each key once.
        dim: D.
    Returns:
        (N, D) float32.
    Raises:
        InputError: another shape or length, what is not finite, a key twice, or as `check_item`.
    """
    try:
        rows = np.asarray(vectors, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"vectors: expected ({len(items)}, {dim}) numbers, a row for each item ({error})."
        ) from error
    if rows.shape != (len(items), dim):
        raise InputError(f"vectors: expected ({len(items)}, {dim}), a row for each item, got {rows.shape}.")
    norms = np.linalg.norm(rows, axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) < 1e-3))  # also what is not finite
    if len(wrong):
        raise InputError(
            f"vectors[{wrong[0]}]: expected length 1, got {norms[wrong[0]]:.6g}. Divide each row by its L2 norm."
        )
    keys: set[str] = set()
    for i, item in enumerate(items):
        check_item(item, f"items[{i}]")  # what is acknowledged must be writable as a segment
        if item.key in keys:
            raise InputError(f"items[{i}]: key {item.key!r} is there twice.")
        keys.add(item.key)
    return rows


def check_item(item: Item, where: str = "item") -> None:
    """Refuse what an index cannot keep and give back as it was. Called before an item is acknowledged.

    Args:
        where: names the item in the message, e.g. "items[3]".
    Raises:
        InputError: an empty key, NaN, a whole number of more than 64 bits, a NUL character, a value that is no JSON, too deep.
    """
    if not isinstance(item.key, str) or not item.key or "\0" in item.key:
        raise InputError(
            f"{where}: expected a key of one character or more, none of them NUL, got {item.key!r}."
        )
    if not isinstance(item.record, Mapping):
        raise InputError(
            f"{where} {item.key!r}: expected a record of fields, got {type(item.record).__name__}."
        )
    if problem := _problem(item.record, 0):
        raise InputError(f"{where} {item.key!r}: record{problem}")


def _problem(value: Any, depth: int) -> str:
    """Where in a record something cannot be kept, and what: ".exif.iso: ..."; "" where all can."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        return ": text with a NUL character. Leave it out." if "\0" in value else ""
    if isinstance(value, int):
        return "" if -(2**63) <= value < 2**63 else ": a whole number of more than 64 bits. Give it as text."
    if isinstance(value, float):
        return "" if math.isfinite(value) else f": {value} is no finite number. Leave the field out."
    if depth > MAX_NESTING:
        return f": nested more than {MAX_NESTING} deep. Flatten it."
    if isinstance(value, (list, tuple)):
        return next(
            (f"[{i}]{found}" for i, one in enumerate(value) if (found := _problem(one, depth + 1))), ""
        )
    if not isinstance(value, Mapping):
        return f": expected text, numbers, true, false, null, lists or objects, got {type(value).__name__}. Of numpy: value.item()."
    for name, one in value.items():
        if not isinstance(name, str) or "\0" in name:
            return f": expected field names of text without NUL, got {name!r}."
        if found := _problem(one, depth + 1):
            return f".{name}{found}"
    return ""
