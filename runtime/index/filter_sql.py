"""A filter as SQL over a table `records` (key, path, size, mtime, caption, record), every name and value a bound parameter.

User fields are read out of the record's JSON. Numbers are bound as JSON text too: SQLite's own reading of a decimal number may differ
from Python's in the last bit, so both sides of a comparison go through the same one. Text is bound as bytes and cast, since a file
name that is no Unicode holds surrogates, which sqlite3 binds as nothing else.
"""

from __future__ import annotations

import fnmatch
import json
import sqlite3
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from edgeclip.runtime.index.filters import KEY, All, Compare, Filter, Name, Not, check_size, kind_of

# columns of the table: a record's field of this name where it is of this kind, else NULL
TEXTS, NUMBERS = ("path", "caption"), ("size", "mtime")
TEXT, NUMBER = "'text'", "'integer', 'real'"  # as typeof() and json_type() call them alike
Read = tuple[str, str]  # SQL of a value's type, and of the value


def to_sql(where: Filter) -> tuple[str, dict[str, Any]]:
    """The WHERE clause and its parameters; never NULL.

    Raises:
        InputError: more conditions or deeper than a database takes.
    """
    check_size(where)
    writer = _Writer()
    return writer.write(where), writer.bound


def add_functions(connection: sqlite3.Connection) -> None:
    """Give a connection the functions that these clauses call. SQLite's own LIKE folds ASCII alone, its GLOB has no [!abc]."""
    connection.create_function("edgeclip_has", 2, _has, deterministic=True)
    connection.create_function("edgeclip_glob", 2, _glob, deterministic=True)


def to_bytes(text: str) -> bytes:
    """UTF-8, surrogates as they are."""
    return text.encode("utf-8", "surrogatepass")


def to_text(data: bytes) -> str:
    """The inverse of to_bytes."""
    return data.decode("utf-8", "surrogatepass")


def to_json(value: object) -> bytes:
    """Compact JSON whose text is what it is: escapes would have to be undone at every comparison."""
    return to_bytes(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


class _Writer:
    def __init__(self) -> None:
        self.bound: dict[str, Any] = {}

    def write(self, where: Filter) -> str:
        if isinstance(where, Compare):
            return f"({self._compare(where)}) IS TRUE"
        if isinstance(where, Not):
            return f"NOT ({self.write(where.part)})"
        parts = [f"({self.write(part)})" for part in where.parts]
        return (" AND " if isinstance(where, All) else " OR ").join(parts) or str(
            isinstance(where, All)
        ).upper()

    def _compare(self, one: Compare) -> str:
        test = self._null if one.op == "null" else self._test(one)
        if one.name == KEY:
            return test(("typeof(key)", "key"))
        if len(one.name) == 1 and one.name[0] in (*TEXTS, *NUMBERS):
            column = one.name[0]
            return f"CASE WHEN {column} IS NULL THEN {self._in_json(one.name, test)} ELSE {test((f'typeof({column})', column))} END"
        return self._in_json(one.name, test)

    def _in_json(self, name: Name, test: Callable[[Read], str]) -> str:
        path = self._text("$" + "".join(f'."{part}"' for part in name))
        kind, value = f"json_type(record, {path})", f"json_extract(record, {path})"
        if test == self._null:
            return test((kind, value))
        within = f"EXISTS (SELECT 1 FROM json_each(record, {path}) AS e WHERE {test(('e.type', 'e.value'))})"
        return f"CASE {kind} WHEN 'array' THEN {within} ELSE {test((kind, value))} END"

    @staticmethod
    def _null(read: Read) -> str:
        return f"ifnull({read[0]}, 'null') = 'null'"

    def _test(self, one: Compare) -> Callable[[Read], str]:
        if one.op == "in":
            tests = [self._among(kind, one.value) for kind in sorted({kind_of(value) for value in one.value})]
            return lambda read: " OR ".join(f"({test(read)})" for test in tests) or "FALSE"
        if isinstance(one.value, bool):
            return self._among("bool", (one.value,))
        if one.op in ("~", "glob"):
            function = "edgeclip_has" if one.op == "~" else "edgeclip_glob"
            wanted = self._bind(to_bytes(one.value.casefold() if one.op == "~" else one.value))
            return lambda read: (
                f"CASE {read[0]} WHEN {TEXT} THEN {function}(CAST({read[1]} AS BLOB), {wanted}) END"
            )
        text = isinstance(one.value, str)
        wanted = self._text(one.value) if text else f"json_extract({self._bind(json.dumps(one.value))}, '$')"
        return lambda read: f"{read[0]} IN ({TEXT if text else NUMBER}) AND {read[1]} {one.op} {wanted}"

    def _among(self, kind: str, values: tuple[Any, ...]) -> Callable[[Read], str]:
        mine = [value for value in values if kind_of(value) == kind]
        if kind == "bool":
            names = ", ".join(f"'{json.dumps(value)}'" for value in sorted(set(mine)))
            return lambda read: f"{read[0]} IN ({names})"
        listed = f"(SELECT w.value FROM json_each(CAST({self._bind(to_json(mine))} AS TEXT)) AS w)"
        return lambda read: f"{read[0]} IN ({TEXT if kind == 'text' else NUMBER}) AND {read[1]} IN {listed}"

    def _text(self, text: str) -> str:
        return f"CAST({self._bind(to_bytes(text))} AS TEXT)"

    def _bind(self, value: Any) -> str:
        name = f"v{len(self.bound)}"
        self.bound[name] = value
        return f":{name}"


def _has(text: bytes, wanted: bytes) -> bool:
    folded = text.lower() if text.isascii() else to_bytes(to_text(text).casefold())
    return wanted in folded  # bytes of whole characters: no character of UTF-8 lies within another


def _glob(text: bytes, pattern: bytes) -> bool:
    return fnmatch.fnmatchcase(to_text(text), _pattern(pattern))


_pattern = lru_cache(256)(to_text)
