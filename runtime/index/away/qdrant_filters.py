"""Filters in Qdrant's words. What it cannot say (contains, glob, order of texts) is left out there and checked on what comes back.

So Qdrant is asked for too many rather than too few, and its answer always means what `filters.py` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeclip.runtime.index.away.qdrant_client import models_of
from edgeclip.runtime.index.away.texts import to_utf8
from edgeclip.runtime.index.filters import KEY, All, Compare, Filter, Name, Not, Some, kind_of, parse_filter
from edgeclip.runtime.index.types import Item

_BOUNDS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
_MOST = 2**53  # whole numbers beyond it are other ones in float64, which is what Qdrant compares


@dataclass(frozen=True)
class Wanted:
    """A filter: what of it Qdrant checks, and the whole of it."""

    filter: Any  # qdrant_client.models.Filter; None: nothing
    whole: bool  # Qdrant checks all of it
    _asked: Filter | None

    @classmethod
    def of(cls, where: Filter | str | Mapping[str, Any] | None) -> Wanted:
        """Raises InputError for a filter that cannot be read."""
        if where is None:
            return cls(None, True, None)
        asked = parse_filter(where)
        found, exact = _translate(asked)
        return cls(None if found is None else models_of().Filter(must=[found]), exact, asked)

    def meets(self, item: Item) -> bool:
        """Whether the whole of it holds."""
        return self._asked is None or self._asked.matches(item)


def _translate(asked: Filter) -> tuple[Any, bool]:
    """A condition that holds wherever the filter does, None for no condition; and whether it holds nowhere else."""
    models = models_of()
    if isinstance(asked, Compare):
        return _compare(asked)
    if isinstance(asked, Not):
        found, exact = _translate(asked.part)
        return (models.Filter(must_not=[found]), True) if exact and found is not None else (None, False)
    parts = [_translate(part) for part in asked.parts]
    known, exact = [found for found, _ in parts if found is not None], all(one for _, one in parts)
    if isinstance(asked, All):
        return (models.Filter(must=known) if known else None), exact and bool(known)
    if isinstance(asked, Some) and known and len(known) == len(parts):
        return models.Filter(should=known), exact
    return None, False


def _compare(asked: Compare) -> tuple[Any, bool]:
    models, path = models_of(), _path(asked.name)
    if path is None:
        return None, False
    if asked.op == "null":  # Qdrant's empty is also a list of nothing
        return models.IsEmptyCondition(is_empty=models.PayloadField(key=path)), False
    if asked.op in ("=", "in"):
        values = asked.value if asked.op == "in" else (asked.value,)
        known = [_equal(path, value) for value in values]
        if not known or None in known:
            return None, False
        return models.Filter(should=known), True
    if asked.op in _BOUNDS and _is_plain_number(asked.value):
        bound = models.Range(**{_BOUNDS[asked.op]: float(asked.value)})
        return models.FieldCondition(key=path, range=bound), True
    return None, False


def _equal(path: str, value: Any) -> Any:
    models = models_of()
    if kind_of(value) == "number":  # a range, since Qdrant's own match tells 2020 from 2020.0
        bound = models.Range(gte=float(value), lte=float(value))
        return models.FieldCondition(key=path, range=bound) if _is_plain_number(value) else None
    match = models.MatchValue(value=to_utf8(value) if isinstance(value, str) else value)
    return models.FieldCondition(key=path, match=match)


def _is_plain_number(value: Any) -> bool:
    return kind_of(value) == "number" and abs(value) <= _MOST


def _path(name: Name) -> str | None:
    """In Qdrant's JSON path language; None where it has no words for it."""
    if name == KEY:
        return "key"
    parts = [to_utf8(part) for part in name]
    return (
        None if any('"' in part for part in parts) else ".".join(["record", *(f'"{part}"' for part in parts)])
    )
