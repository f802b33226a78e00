"""The filter language read: tokens, then a tree. Meaning and examples stand in filters.py."""

from __future__ import annotations

import re
from typing import NamedTuple

from edgeclip.errors import InputError
from edgeclip.runtime.index.filters import (
    MAX_DEPTH,
    MAX_TEXT,
    All,
    Filter,
    Name,
    Not,
    Some,
    compare,
)

KEYWORDS = ("and", "or", "not", "in", "is", "null", "true", "false", "glob")
CONSTANTS = {"null": None, "true": True, "false": False}
COMPARISONS = {
    "=": "=",
    "==": "=",
    "!=": "!=",
    "<>": "!=",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
    "~": "~",
}
TOKENS = re.compile(
    r"""(?P<space>\s+)
    | (?P<string>'(?:[^']|'')*' | "(?:[^"]|"")*")
    | (?P<number>[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?!\w))
    | (?P<name>[^\W\d]\w*)
    | (?P<sign><=|>=|<>|!=|==|[=<>~(),.])""",
    re.VERBOSE,
)


class Token(NamedTuple):
    """A word of the language; `kind` is "name", "string", "number", "end", or the keyword or sign itself."""

    kind: str
    text: str
    at: int  # of its first character, from 1


def parse(text: str) -> Filter:
    """Text to a tree. Raises InputError with the place of what cannot be read."""
    if len(text) > MAX_TEXT:
        raise InputError(f"filter: {len(text)} characters, more than {MAX_TEXT}. Ask for less at a time.")
    return _Parser(text).whole()


def _tokens(text: str) -> list[Token]:
    found, at = [], 0
    while at < len(text):
        match = TOKENS.match(text, at)
        if match is None:
            raise _unknown(text, at)
        kind, word = str(match.lastgroup), match[0]
        if kind == "name" and word.lower() in KEYWORDS:
            kind = word.lower()
        if kind != "space":
            found.append(Token(word if kind == "sign" else kind, word, at + 1))
        at = match.end()
    return [*found, Token("end", "the end", len(text) + 1)]


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens, self._next, self._depth = _tokens(text), 0, 0

    def whole(self) -> Filter:
        tree = self._some()
        self._take("end", wanted="'and', 'or' or the end")
        return tree

    def _some(self) -> Filter:
        parts = [self._all()]
        while self._skip("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def _all(self) -> Filter:
        parts = [self._one()]
        while self._skip("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self) -> Filter:
        token = self._look
        if token.kind not in ("not", "("):
            return self._condition()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise InputError(
                f"filter: at character {token.at}: nested more than {MAX_DEPTH} deep. Write it flatter."
            )
        self._next += 1
        tree = Not(self._one()) if token.kind == "not" else self._some()
        if token.kind == "(":
            self._take(")", wanted="'and', 'or' or ')'")
        self._depth -= 1
        return tree

    def _condition(self) -> Filter:
        name, token = self._name(), self._look
        if self._skip("is"):
            no = self._skip("not")
            self._take("null", wanted="null" if no else "null or not null")
            return compare(name, "!=" if no else "=", None)
        no = self._skip("not")
        if self._skip("in"):
            tree = compare(name, "in", self._values())
        elif self._skip("glob"):
            tree = compare(name, "glob", self._value("a pattern in quotes", ("string",)))
        elif token.kind in COMPARISONS:
            self._next += 1
            tree = self._compared(name, COMPARISONS[token.kind])
        else:
            raise self._wrong("in or glob" if no else f"an operator ({', '.join(COMPARISONS)}, in, is, glob)")
        return Not(tree) if no else tree

    def _compared(self, name: Name, op: str) -> Filter:
        if op == "~":
            return compare(name, op, self._value("text in quotes", ("string",)))
        if op in ("=", "!="):
            return compare(name, op, self._value())
        return compare(name, op, self._value("a number or text in quotes", ("string", "number")))

    def _name(self) -> Name:
        parts = [self._name_part("a field")]
        while self._skip("."):
            parts.append(self._name_part("a field's name after the dot"))
        return tuple(parts)

    def _name_part(self, wanted: str) -> str:
        token = self._look
        if token.kind not in ("name", "string"):
            hint = " (a field of this name: put it in quotes)" if token.kind in KEYWORDS else ""
            raise self._wrong(wanted, hint)
        self._next += 1
        return token.text if token.kind == "name" else _unquoted(token.text)

    def _values(self) -> list[object]:
        self._take("(", wanted="'('")
        values = [self._value()]
        while self._skip(","):
            values.append(self._value())
        self._take(")", wanted="',' or ')'")
        return values

    def _value(
        self, wanted: str = "a value", kinds: tuple[str, ...] = ("string", "number", *CONSTANTS)
    ) -> object:
        token = self._look
        if token.kind not in kinds:
            raise self._wrong(wanted, " (text stands in quotes)" if token.kind == "name" else "")
        self._next += 1
        if token.kind == "string":
            return _unquoted(token.text)
        if token.kind != "number":
            return CONSTANTS[token.kind]
        whole = re.fullmatch(r"[-+]?[0-9]+", token.text)
        return int(token.text[:25]) if whole else float(token.text)  # 25 digits are refused already

    @property
    def _look(self) -> Token:
        return self._tokens[self._next]

    def _skip(self, kind: str) -> bool:
        here = self._look.kind == kind
        self._next += here
        return here

    def _take(self, kind: str, wanted: str) -> None:
        if not self._skip(kind):
            raise self._wrong(wanted)

    def _wrong(self, wanted: str, hint: str = "") -> InputError:
        token = self._look
        got = token.text if token.kind == "end" else repr(token.text[:40])
        return InputError(f"filter: at character {token.at}: expected {wanted}, got {got}{hint}.")


def _unknown(text: str, at: int) -> InputError:
    word = re.compile(r"\w+|.", re.DOTALL).match(text, at)
    what = "text without its closing quote" if text[at] in "'\"" else repr(word and word[0][:40])
    return InputError(f"filter: at character {at + 1}: expected a field, an operator or a value, got {what}.")


def _unquoted(text: str) -> str:
    return text[1:-1].replace(text[0] * 2, text[0])
