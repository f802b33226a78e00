"""Texts for whoever keeps UTF-8 only: a file name may hold bytes that are no Unicode, which Python keeps as lone surrogates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

_MARK = 'json:"'  # begins a text that was escaped; one that begins so itself is escaped too, so that reading is exact


def to_utf8(text: str) -> str:
    """The text itself, or where UTF-8 has no place for it its JSON with \\u escapes behind "json:"."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"json:{json.dumps(text)}"
    return f"json:{json.dumps(text)}" if text.startswith(_MARK) else text


def from_utf8(text: str) -> str:
    """What `to_utf8` was given; any other text as it is."""
    if not text.startswith(_MARK):
        return text
    try:
        found = json.loads(text[len("json:") :])
    except ValueError:
        return text
    return found if isinstance(found, str) else text


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every text in it changed, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): each_text(part, change) for name, part in value.items()}
    return [each_text(part, change) for part in value] if isinstance(value, (list, tuple)) else value
