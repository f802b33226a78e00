"""What an index can keep beside a vector and give back as it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgeclip.errors import InputError
from edgeclip.runtime.index.types import Item

MAX_NESTING = 100  # of a record; SQLite's JSON takes 1000


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
