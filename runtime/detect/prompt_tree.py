"""Prompts within prompts: "[a face [an eye, a nose], a cup]" looks for faces and cups, then for eyes and noses in each face."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError

MAX_DEPTH = 4  # of brackets: each level runs the detector once for every detection of the level above


@dataclass(frozen=True)
class Prompt:
    """One label, and what to look for within each detection of it."""

    label: int  # in the tree's labels
    within: tuple[Prompt, ...] = ()


@dataclass(frozen=True)
class PromptTree:
    """What to look for in the whole picture, and within what is found there."""

    labels: tuple[
        str, ...
    ]  # every one once, in the order in which they stand; the same label may stand in several places
    prompts: tuple[Prompt, ...]

    @property
    def nested(self) -> bool:
        """Whether anything is looked for within anything."""
        return any(prompt.within for prompt in self.prompts)

    @property
    def columns(self) -> NDArray[np.int64] | None:
        """Which labels are looked for in the whole picture; None: all of them."""
        found = [prompt.label for prompt in self.prompts]
        return None if found == list(range(len(self.labels))) else np.array(found)

    def and_flat(self, more: tuple[str, ...]) -> PromptTree:
        """With more labels, looked for in the whole picture."""
        others = tuple(Prompt(len(self.labels) + i) for i in range(len(more)))
        return PromptTree((*self.labels, *more), (*self.prompts, *others))

    @classmethod
    def flat(cls, labels: tuple[str, ...]) -> PromptTree:
        """Every label in the whole picture."""
        return cls(labels, tuple(Prompt(i) for i in range(len(labels))))


@lru_cache(maxsize=64)
def parse_prompts(text: str) -> PromptTree:
    """Read "[a face [an eye, a nose], a cup]".

    Raises:
        InputError: with the column where the brackets, commas or labels are wrong, or the brackets are too deep.
    """
    return _Parser(text).whole()


def typed_prompts(text: str) -> list[str] | str:
    """Prompts as people type them: "a cat, a dog", or one a line (# starts a comment). With brackets, as `parse_prompts` takes them.

    Raises:
        InputError: none.
    """
    text = text.strip()
    if "[" in text:
        return text if text.startswith("[") else f"[{text}]"
    lines = [line.split("#")[0] for line in text.splitlines()]
    found = [part.strip() for line in lines for part in line.split(",") if part.strip()]
    if not found:
        raise InputError("prompts: expected one or more, separated by commas or lines; got none.")
    return found


class _Parser:
    """By recursive descent: list = "[" item {"," item} "]"; item = label [list]."""

    def __init__(self, text: str) -> None:
        self._text, self._parts = text, list(re.finditer(r"[\[\],]|[^\[\],]+", text))
        self._at, self._labels = 0, dict[str, int]()

    def whole(self) -> PromptTree:
        prompts = self._list(1)
        if self._peek():
            self._fail("expected the end")
        return PromptTree(tuple(self._labels), prompts)

    def _list(self, depth: int) -> tuple[Prompt, ...]:
        if self._peek() != "[":
            self._fail("expected [")
        if depth > MAX_DEPTH:
            self._fail(f"expected at most {MAX_DEPTH} brackets within each other")
        found: dict[int, Prompt] = {}
        while not found or self._peek() == ",":
            self._at += 1
            name = self._peek()
            if name in ("", "[", "]", ","):
                self._fail("expected a label")
            label = self._labels.setdefault(name, len(self._labels))
            if label in found:
                self._fail(f"expected each label once in a list, {name!r} came before")
            self._at += 1
            found[label] = Prompt(label, self._list(depth + 1) if self._peek() == "[" else ())
        if self._peek() != "]":
            self._fail("expected , or ]")
        self._at += 1
        return tuple(found.values())

    def _peek(self) -> str:
        """The next bracket, comma or label, "" at the end. Blanks around it are nothing."""
        while self._at < len(self._parts) and not self._parts[self._at].group().strip():
            self._at += 1
        return self._parts[self._at].group().strip() if self._at < len(self._parts) else ""

    def _fail(self, wanted: str) -> None:
        found = self._peek()
        column = 1 + len(self._text)
        if found:
            part = self._parts[self._at]
            column = 1 + part.start() + len(part.group()) - len(part.group().lstrip())
        raise InputError(
            f"prompts, column {column}: {wanted}, got {repr(found[:40]) if found else 'the end'}. "
            'Write them like "[a face [an eye, a nose], a cup]".'
        )
