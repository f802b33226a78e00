"""A table without a look: the terminal, Markdown and HTML draw the same one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Grid:
    """Rows of texts, not yet escaped for any format."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    words: frozenset[str] = frozenset()  # columns that hold words and stand left; the first always does

    def only(self, *columns: str) -> Grid:
        """Some of the columns, for a narrow place."""
        at = [self.head.index(name) for name in columns]
        return replace(self, head=columns, rows=tuple(tuple(row[i] for i in at) for row in self.rows))

    def without(self, column: str) -> Grid:
        """All columns but one."""
        return self.only(*(name for name in self.head if name != column))

    def filled(self) -> Grid:
        """The columns that say something in any row."""
        kept = (name for i, name in enumerate(self.head) if any(row[i] != "-" for row in self.rows))
        return self.only(*kept)

    def is_words(self, column: int) -> bool:
        """Stands left."""
        return column == 0 or self.head[column] in self.words


def grid(
    title: str, head: str, rows: Sequence[Sequence[str]], notes: Sequence[str] = (), words: str = ""
) -> Grid:
    """A grid whose columns are named in one text, separated by "|"."""
    names = tuple(head.split("|"))
    return Grid(title, names, tuple(map(tuple, rows)), tuple(notes), frozenset(words.split("|")) - {""})
