"""Frozen dataclasses from parsed JSON, every field checked against its annotation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeclip.errors import BundleError

T = TypeVar("T")


def short(value: object) -> str:
    """A value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def from_json_value(cls: type[T], data: Any, where: str, newer: bool = False) -> T:
    """A dataclass from parsed JSON. `newer`: unknown fields are let pass. Raises BundleError that says where."""
    if not isinstance(data, dict):
        raise BundleError(f"{where}: expected an object, got {short(data)}.")
    hints: dict[str, Any] = _hints(cls)  # type: ignore[arg-type]  # a class can be hashed
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if not newer and (unknown := sorted(set(data) - known)):
        raise BundleError(f"{where}: unknown field {unknown[0]!r}.")
    values = {}
    for name in known & set(data):
        values[name] = _convert(hints[name], data[name], f"{where}: {name}", newer)
    try:
        return cls(**values)
    except TypeError as error:
        raise BundleError(f"{where}: a field is missing ({error}).") from error


@cache  # 3 ms of the 3.5 that a record of an engine takes
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str, newer: bool) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        return from_json_value(hint, value, where, newer)
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        for option in args:
            if option is not NoneType and (option is not float or type(value) in (int, float)):
                try:
                    return _convert(option, value, where, newer)
                except BundleError as error:
                    last = error
        raise last
    if origin is Literal:
        if value not in args:
            raise BundleError(f"{where}: expected one of {', '.join(map(str, args))}, got {short(value)}.")
        return value
    if origin is tuple and isinstance(value, list):
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise BundleError(f"{where}: expected {len(inner)} values, got {len(value)}.")
        return tuple(
            _convert(kind, item, f"{where}[{i}]", newer)
            for i, (kind, item) in enumerate(zip(inner, value, strict=True))
        )
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _convert(args[1], item, f"{where}[{key!r}]", newer) for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise BundleError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {short(value)}.")
