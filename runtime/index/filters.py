"""Conditions on what stands beside a vector: a tree, a small language, and what both mean.

    size > 100000 and (caption ~ 'dog' or year >= 2020) and not tag in ('a', 'b')

    field = value      equal; also != (or <>), <, <=, >, >=
    field ~ 'text'     contains, in any case
    field glob 'a/*'   * any characters (also /), ? one, [abc] one of them, [!abc] none of them; case counts
    field in (1, 'a')  equals one of them; also `not in`
    field is null      missing, or null; also `is not null`
    not, and, or, ()   in this order of strength; keywords in any case

Fields: `key` is the item's own; every other one is of its record: path, size, mtime, caption and whatever the user put there.
`exif.iso` is `iso` within `exif`; a name of other characters stands in quotes: "lens model", exif."a.b". Values: 'text' or "text"
(a quote within is doubled), numbers, true, false, null.

Every condition holds or does not; there is no third state:
- Only like is compared with like: a number with numbers (2020 = 2020.0), text with text (by code points, case counts), true and
  false with themselves alone (true is not 1). `year > 2000` does not hold for the text '2020'; text has no < with a number.
- A missing field is null, and for null holds `is null` (or `= null`) and nothing else. `a != v` is `not a = v`, and so holds for a
  field that is missing or of another kind; add `and a is not null` where that is not meant.
- A list matches where one of its elements does: tag = 'a' finds tag ['a', 'b']; tag != 'a' finds lists without 'a'. Lists and
  objects within a list are passed over, and a dotted name does not reach into one.
- An object equals nothing; its fields have dotted names.
"""

from __future__ import annotations

import fnmatch
import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, TypeAlias

from edgeclip.errors import InputError
from edgeclip.runtime.index.types import Item

Name = tuple[str, ...]  # ("exif", "iso")
KEY: Name = ("key",)
ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
OPERATORS = ("=", *ORDERS, "~", "glob", "in", "null")  # of a Compare; the language has more words for them
# SQLite's parser keeps 100 symbols, of which a level takes 3 and a condition 40; its expressions are 1000 deep
MAX_DEPTH, MAX_CONDITIONS, MAX_TEXT = 16, 500, 100_000
_INT64 = 2**63


def kind_of(value: object) -> str:
    """ "bool", "number", "text", "null" or "other": only values of one kind are compared."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) else "null" if value is None else "other"


@dataclass(frozen=True)
class Compare:
    """One condition on one field. `op` is one of OPERATORS; of "in" the value is a tuple, of "null" it is None. `compare` is kinder.

    Raises:
        InputError: an unknown operator, a name or a value that cannot be compared so.
    """

    name: Name
    op: str
    value: Any = None

    def __post_init__(self) -> None:
        shown = ".".join(self.name)
        if self.op not in OPERATORS:
            raise InputError(f"filter: operator {self.op!r}: unknown. Choose from {', '.join(OPERATORS)}.")
        if not self.name or any(not part or re.search(r'["\\\x00-\x1f]', part) for part in self.name):
            raise InputError(
                f"filter: field {shown!r}: a name that is empty or has quotes, backslashes or control characters "
                "cannot be asked for. Give the field another name."
            )
        for value in self.value if self.op == "in" else (self.value,):
            _check_value(shown, self.op, value)

    def matches(self, item: Item) -> bool:
        """Whether it holds for an item."""
        got = read_field(item, self.name)
        if self.op == "null":
            return got is None
        return any(map(self._holds, got)) if isinstance(got, (list, tuple)) else self._holds(got)

    def _holds(self, got: Any) -> bool:
        kind = kind_of(got)
        if self.op == "in":
            return kind != "other" and (kind, got) in self._wanted
        if kind != kind_of(self.value):
            return False
        if self.op == "~":
            return str(self.value).casefold() in got.casefold()
        if self.op == "glob":
            return fnmatch.fnmatchcase(got, self.value)
        return bool(got == self.value if self.op == "=" else ORDERS[self.op](got, self.value))

    @cached_property
    def _wanted(self) -> frozenset[tuple[str, Any]]:
        return frozenset((kind_of(value), value) for value in self.value)


@dataclass(frozen=True)
class All:
    """Every part holds; of no parts, always."""

    parts: tuple[Filter, ...]

    def matches(self, item: Item) -> bool:
        """Whether it holds for an item."""
        return all(part.matches(item) for part in self.parts)


@dataclass(frozen=True)
class Some:
    """At least one part holds; of no parts, never."""

    parts: tuple[Filter, ...]

    def matches(self, item: Item) -> bool:
        """Whether it holds for an item."""
        return any(part.matches(item) for part in self.parts)


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Filter

    def matches(self, item: Item) -> bool:
        """Whether it holds for an item."""
        return not self.part.matches(item)


Filter: TypeAlias = Compare | All | Some | Not


def compare(name: str | Name, op: str, value: Any = None) -> Filter:
    """One condition, built by hand: compare("exif.iso", ">=", 400), compare("tag", "in", ["a", "b"]), compare("year", "!=", None).

    Args:
        name: dots lead into objects; a tuple of names is taken as it is.
        op: one of OPERATORS, or "!=".
    Raises:
        InputError: an unknown operator, a name or a value that cannot be compared so.
    """
    name = tuple(name.split(".")) if isinstance(name, str) else tuple(name)
    if op == "!=":
        return Not(compare(name, "=", value))
    if op == "=" and value is None:
        return Compare(name, "null")
    if op != "in":
        return Compare(name, op, value)
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise InputError(f"filter: {'.'.join(name)} in: expected a list of values, got {value!r}.")
    values = tuple(value)
    known = Compare(name, "in", tuple(one for one in values if one is not None))
    return Some((known, Compare(name, "null"))) if None in values else known


def parse_filter(where: Filter | str | Mapping[str, Any]) -> Filter:
    """What a caller may say for a filter, as a tree.

    Args:
        where: text of the language above; a mapping, of which every field equals its value (or one of its list); or a tree.
    Raises:
        InputError: none of these; or says at which character of the text what was expected.
    """
    from edgeclip.runtime.index.filter_text import parse

    if isinstance(where, str):
        where = parse(where)
    elif isinstance(where, Mapping):
        where = All(tuple(_equal(str(name), value) for name, value in where.items()))
    if not isinstance(where, (Compare, All, Some, Not)):
        raise InputError(f"filter: expected text, a mapping or a Filter, got {type(where).__name__}.")
    check_size(where)
    return where


def read_field(item: Item, name: Name) -> Any:
    """A field's value; None where it is missing."""
    return item.key if name == KEY else reduce(_within, name, item.record)


def check_size(where: Filter) -> None:
    """Refuse a tree that is too deep or has too many conditions to be asked of a database. Raises InputError."""
    conditions = 0
    waiting: list[tuple[Filter, int]] = [(where, 0)]
    while waiting:  # a loop: a tree built by hand may be deeper than Python's own stack
        part, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise InputError(f"filter: nested more than {MAX_DEPTH} deep. Write it flatter.")
        if isinstance(part, Compare):
            conditions += 1
        else:
            waiting += [(one, depth + 1) for one in ((part.part,) if isinstance(part, Not) else part.parts)]
    if conditions > MAX_CONDITIONS:
        raise InputError(
            f"filter: {conditions} conditions, more than {MAX_CONDITIONS}. Many values of one field: use `in (...)`."
        )


def _equal(name: str, value: Any) -> Filter:
    return compare(name, "in" if isinstance(value, (list, tuple, set, frozenset)) else "=", value)


def _within(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _check_value(name: str, op: str, value: Any) -> None:
    kind = kind_of(value)
    wanted = {"~": ("text",), "glob": ("text",), "null": ("null",), "=": ("bool", "number", "text")}
    if kind not in wanted.get(op, ("number", "text") if op in ORDERS else wanted["="]):
        hint = " Say `is null` or `is not null`." if value is None else ""
        raise InputError(f"filter: {name} {op} {value!r}: values of this kind are not compared so.{hint}")
    if kind == "number" and not (
        math.isfinite(value) if isinstance(value, float) else -_INT64 <= value < _INT64
    ):
        raise InputError(f"filter: {name} {op} {value!r}: expected a finite number, whole ones of 64 bits.")
    if kind == "text" and "\0" in value:
        raise InputError(f"filter: {name} {op}: text in an index has no character NUL.")
    if op == "glob":
        try:
            re.compile(fnmatch.translate(value))
        except re.error as error:  # Python 3.10 and [z-a]
            raise InputError(f"filter: {name} glob {value!r}: no pattern ({error}).") from error
