"""`key=value` texts into typed settings of a frozen dataclass. Types come from the annotations; nothing is evaluated."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeclip.errors import TrainingError

T = TypeVar("T")

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that refuses `name`: "; did you mean X?", or a full stop."""
    near = get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else "."


def assign(target: T, assignments: Iterable[tuple[str, str, str]]) -> T:
    """A copy of a dataclass with settings parsed from texts. Only the whole is checked, so their order does not matter.

    Args:
        assignments: (key, text, where): a key may reach into parts with dots; `where` stands before an error's message.
    Raises:
        TrainingError: no such setting, or a text that its type does not take.
    """
    changes: dict[str, Any] = {}
    for key, text, where in assignments:
        head, _, rest = key.partition(".")
        names = [spec.name for spec in dataclasses.fields(target)]  # type: ignore[arg-type]
        if head not in names:
            raise TrainingError(
                f"{where}: no setting {head!r}{nearest(head, names)} There are {', '.join(names)}."
            )
        if not rest:
            changes[head] = parse(text, get_type_hints(type(target))[head], where)
            continue
        part = changes.get(head, getattr(target, head))
        if not dataclasses.is_dataclass(part) or isinstance(part, type):
            raise TrainingError(f"{where}: {head} is {part!r} and has no part {rest!r}.")
        changes[head] = assign(part, [(rest, text, where)])
    return dataclasses.replace(target, **changes)  # type: ignore[type-var]


def parse(text: str, kind: Any, where: str) -> Any:
    """One value of an annotated type.

    Tuples: JSON (`["a, b", "c"]`) or commas (`0.9,0.98`); tuples of pairs: `info_nce:1,image_contrast:0.5`.

    Raises:
        TrainingError: the text is no such value; says which would be.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _parse_union(text, arguments, where)
    if origin is Literal:
        if text not in arguments:
            raise TrainingError(f"{where}: expected one of {', '.join(arguments)}{nearest(text, arguments)}")
        return text
    if origin is tuple:
        return _parse_tuple(text, arguments, where)
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in _TRUE | _FALSE:
            raise TrainingError(f"{where}: expected true or false.")
        return text.lower() in _TRUE
    if kind in (int, float):
        return _parse_number(text, kind, where)
    raise TrainingError(
        f"{where}: cannot be set from a text; write it in a recipe file, or set its parts (key.part=...)."
    )


def check_types(target: Any) -> None:
    """Refuse a value in a hand-written recipe that its annotation does not allow: plain types and Literal only.

    Raises:
        TrainingError: names the setting, the type and the value.
    """
    for name, kind in get_type_hints(type(target)).items():
        value = getattr(target, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise TrainingError(f"{name}: expected one of {', '.join(get_args(kind))}, got {value!r}.")
        whole = type(value) is int
        if (kind is int and not whole) or (kind is float and not (whole or type(value) is float)):
            raise TrainingError(f"{name}: expected {kind.__name__}, got {value!r}.")
        if kind is float and not math.isfinite(value):
            raise TrainingError(f"{name}: expected a finite number, got {value!r}.")
        if get_origin(kind) is tuple and not isinstance(value, tuple):
            raise TrainingError(f"{name}: expected a tuple, got {value!r}.")


def _parse_number(text: str, kind: type, where: str) -> int | float:
    try:
        value = float(text)
    except ValueError as error:
        raise TrainingError(f"{where}: expected a number.") from error
    if not math.isfinite(value) or (kind is int and not value.is_integer()):
        raise TrainingError(f"{where}: expected {'a whole' if kind is int else 'a finite'} number.")
    return int(value) if kind is int else value


def _parse_union(text: str, kinds: tuple[Any, ...], where: str) -> Any:
    if NoneType in kinds and text.lower() == "none":
        return None
    plain = [kind for kind in kinds if kind in (str, int, float, bool)]
    return parse(text, plain[0] if plain else kinds[0], where)


def _parse_tuple(text: str, kinds: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if text.startswith("["):
        try:
            items: list[str] = [_text(item) for item in json.loads(text)]
        except ValueError as error:
            raise TrainingError(f"{where}: not a JSON list ({error}).") from error
    else:
        items = [item.strip() for item in text.split(",") if item.strip()]
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise TrainingError(f"{where}: expected {len(kinds)} values with commas between, got {len(items)}.")
    return tuple(
        _parse_tuple(item.replace(":", ","), get_args(kind), where)
        if get_origin(kind) is tuple and not item.startswith("[")
        else parse(item, kind, where)
        for item, kind in zip(items, kinds, strict=True)
    )


def _text(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item)
