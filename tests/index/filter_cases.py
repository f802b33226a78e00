"""Random records and conditions, and what they mean in plain Python: written from the language's description, not from its code."""

from __future__ import annotations

import random
from typing import Any

from edgeclip.runtime.index.types import Item

TEXTS = [
    "", "a", "A", "b", "Straße", "STRASSE", "über", "ÜBER", "1", "it's", 'say "a"', "holiday/x.jpg", "holiday/é/[1].JPG",
    "name \udcff.jpg", "😀", "a\\b", "line\nline", "100%", "_", "*", "null", "true", "\x7f", "\ud83d\ude00", "日本", "[]", '{"a":1}',
]  # fmt: skip
NUMBERS = [0, 1, 2, -5, 2020, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 0.0, -0.0, 1.0, 0.1, 0.30000000000000004, 2020.0, 2.0**53,
           1e300, -1e-300, 5e-324, 1700000000.1234567, 1700000000.1234569, 9.223372036854775807e18]  # fmt: skip
SIMPLE = [*TEXTS, *NUMBERS, True, False]
NAMES = [
    "key",
    "size",
    "path",
    "caption",
    "mtime",
    "tag",
    "exif.iso",
    '"lens model"',
    'exif."a.b"',
    "naïve",
    '"select"',
    "size.x",
    "exif",
    "nobody",
]
PATTERNS = [
    "*",
    "?",
    "holiday/*",
    "*.jpg",
    "[ab]",
    "[!ab]",
    "a",
    "*[[]1]*",
    "**a**",
    "",
    "*\udcff*",
    "日?",
    "[]]",
    "[a-c]*",
]


def random_item(chance: random.Random, number: int) -> Item:
    """An item whose fields hold anything at all."""
    record: dict[str, Any] = {}
    for name in (
        "size",
        "path",
        "caption",
        "mtime",
        "tag",
        "lens model",
        "naïve",
        "select",
        "key",
        'odd "name"\\',
    ):
        if chance.random() < 0.6:
            record[name] = _value(chance, 2)
    if chance.random() < 0.5:
        record["exif"] = {name: _value(chance, 1) for name in ("iso", "a.b") if chance.random() < 0.8}
    return Item(chance.choice([*(text for text in TEXTS if text), f"item {number}"]), record)


def _value(chance: random.Random, depth: int) -> Any:
    what = chance.random()
    if depth and what < 0.25:
        return [_value(chance, depth - 1) for _ in range(chance.randrange(4))]
    if depth and what < 0.3:
        return {"x": _value(chance, depth - 1)}
    return None if what < 0.35 else chance.choice(SIMPLE)


def random_condition(chance: random.Random, depth: int) -> tuple[Any, ...]:
    """("and" | "or", parts), ("not", part) or (operator, name, value)."""
    what = chance.random()
    if depth and what < 0.5:
        word = chance.choice(["and", "or"])
        return word, [random_condition(chance, depth - 1) for _ in range(chance.randrange(2, 4))]
    if depth and what < 0.65:
        return "not", random_condition(chance, depth - 1)
    name, op = (
        chance.choice(NAMES),
        chance.choice(
            ["=", "!=", "<", "<=", ">", ">=", "~", "glob", "in", "not in", "is null", "is not null"]
        ),
    )
    if op in ("in", "not in"):
        return op, name, [chance.choice([*SIMPLE, None]) for _ in range(chance.randrange(1, 5))]
    if op in ("~", "glob"):
        return op, name, chance.choice(TEXTS if op == "~" else PATTERNS)
    return op, name, chance.choice([*SIMPLE, None] if op in ("=", "!=") else [*TEXTS, *NUMBERS])


def as_text(condition: tuple[Any, ...], chance: random.Random) -> str:
    """The same in the filter language, with no more parentheses than it needs."""
    if condition[0] in ("and", "or"):
        parts = [as_text(part, chance) for part in condition[1]]
        inside = [
            f"({text})" if part[0] == "or" or (part[0] == condition[0]) else text
            for part, text in zip(condition[1], parts, strict=True)
        ]
        return f" {chance.choice([condition[0], condition[0].upper()])} ".join(inside)
    if condition[0] == "not":
        return (
            f"not ({as_text(condition[1], chance)})"
            if condition[1][0] in ("and", "or")
            else f"not {as_text(condition[1], chance)}"
        )
    op, name, value = condition
    if op.endswith("null"):
        return f"{name} {op}"
    if isinstance(value, list):
        return f"{name} {op} ({', '.join(_literal(one, chance) for one in value)})"
    return f"{name} {op} {_literal(value, chance)}"


def _literal(value: Any, chance: random.Random) -> str:
    if isinstance(value, str):
        quote = chance.choice("'\"")
        return quote + value.replace(quote, quote * 2) + quote
    return (
        {None: "null", True: "TRUE", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else repr(value)
    )


def holds(condition: tuple[Any, ...], item: Item) -> bool:
    """What the language's description says."""
    if condition[0] == "and":
        return all(holds(part, item) for part in condition[1])
    if condition[0] == "or":
        return any(holds(part, item) for part in condition[1])
    if condition[0] == "not":
        return not holds(condition[1], item)
    op, name, value = condition
    field = _field(name, item)
    if op in ("!=", "not in", "is not null"):
        return not holds(({"!=": "=", "not in": "in", "is not null": "is null"}[op], name, value), item)
    if op == "is null" or (op == "=" and value is None):
        return field is None
    if op == "in":
        return any(holds(("=", name, one), item) for one in value)
    return any(_one_holds(op, one, value) for one in (field if isinstance(field, list) else [field]))


def _field(name: str, item: Item) -> Any:
    path = {"exif.iso": ["exif", "iso"], 'exif."a.b"': ["exif", "a.b"], "size.x": ["size", "x"]}.get(
        name, [name.strip('"')]
    )
    value: Any = item.record
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return item.key if name == "key" else value


def _one_holds(op: str, got: Any, value: Any) -> bool:
    if isinstance(value, str):
        if not isinstance(got, str):
            return False
    elif isinstance(value, bool) or isinstance(got, bool):
        return op == "=" and got is value
    elif not isinstance(got, (int, float)):
        return False
    if op == "~":
        return value.casefold() in got.casefold()
    if op == "glob":
        return _globbed(value, got)
    return {"=": got == value, "<": got < value, "<=": got <= value, ">": got > value, ">=": got >= value}[op]


def _globbed(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(_globbed(pattern[1:], text[start:]) for start in range(len(text) + 1))
    if not text:
        return False
    end = pattern.find("]", 3 if pattern[1:2] == "!" else 2) if pattern[0] == "[" else -1
    if end < 0:
        return pattern[0] in ("?", text[0]) and _globbed(pattern[1:], text[1:])
    chosen, no = pattern[1:end].removeprefix("!"), pattern[1] == "!"
    letters = "abc" if chosen == "a-c" else chosen
    return (text[0] in letters) != no and _globbed(pattern[end + 1 :], text[1:])
