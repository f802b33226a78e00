"""Records as columns: fields that are plain get one each, whatever else a record holds stays JSON."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from edgeclip.runtime.index.away.texts import to_utf8
from edgeclip.runtime.index.types import Item

Kind = Literal["bool", "int", "float", "str"]
RESERVED = {"id", "key", "record", "embedding"}
MOST = 256  # columns: fields named after their values would make millions


def find_columns(items: Iterable[Item]) -> dict[str, Kind]:
    """The fields that become columns: the most frequent ones, each with the kind that most of its values have."""
    seen: dict[str, Counter[Kind]] = defaultdict(Counter)
    for item in items:
        for name, value in item.record.items():
            kind = _kind(value)
            if kind is not None and name not in RESERVED and name and to_utf8(name) == name:
                seen[name][kind] += 1
    frequent = sorted(seen, key=lambda name: -sum(seen[name].values()))[:MOST]
    return {name: _common(seen[name]) for name in sorted(frequent)}


def split(record: Mapping[str, Any], columns: Mapping[str, Kind]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of a record fits the columns, and the rest."""
    fits = {name: value for name, value in record.items() if name in columns and _fits(value, columns[name])}
    return fits, {name: value for name, value in record.items() if name not in fits}


def _kind(value: Any) -> Kind | None:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else None
    if isinstance(value, float):
        return "float" if math.isfinite(value) else None
    return "str" if isinstance(value, str) else None


def _common(kinds: Counter[Kind]) -> Kind:
    if kinds["float"] and kinds["float"] + kinds["int"] >= max(kinds.values()):
        return "float"
    return max(kinds, key=lambda kind: kinds[kind])


def _fits(value: Any, kind: Kind) -> bool:
    own = _kind(value)
    if kind == "float" and own == "int":
        return bool(-(2**53) <= value <= 2**53)  # beyond it a float64 is another number
    return own == kind
