"""What CSV and JSON Lines share: rows that name a picture and say its caption."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeclip.errors import TrainingError

IMAGE_COLUMNS = ("image", "path", "file_name", "filename", "filepath", "image_path", "file", "img")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "title", "description", "sentence")

log = logging.getLogger(__name__)


class Listing:
    """Pictures named by rows, relative to the list's own folder. Rows of one picture are one pair with several captions."""

    def __init__(self, path: Path, rows: Iterable[tuple[str, Sequence[str]] | None]) -> None:
        captions: dict[str, list[str]] = {}
        spoilt = 0
        for row in rows:
            if row is None or not row[0] or not any(text.strip() for text in row[1]):
                spoilt += 1
                continue
            captions.setdefault(row[0], []).extend(text.strip() for text in row[1] if text.strip())
        if spoilt:
            log.warning(
                "%s: %d rows lack a picture or a caption, or cannot be read; they are left out", path, spoilt
            )
        self._folder = path.parent
        self.keys: Sequence[str] = list(captions)
        self._captions = list(captions.values())

    def read(self, index: int) -> tuple[Path, list[str]]:
        """The picture's path and the captions that the list gives it."""
        return self._folder / self.keys[index], self._captions[index]


def pick_column(names: Iterable[str], wanted: tuple[str, ...], where: str) -> str:
    """The first of `wanted` among `names`, whatever its case.

    Raises:
        TrainingError: none is there; lists both.
    """
    present = {name.strip().lower(): name for name in names}
    for name in wanted:
        if name in present:
            return present[name]
    raise TrainingError(
        f"{where}: no column {' or '.join(wanted[:4])}; there are {', '.join(map(repr, present)) or 'none'}."
    )
