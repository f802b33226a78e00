"""JSON Lines: one object a line, with a picture's path and its caption or captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from edgeclip.errors import TrainingError
from edgeclip.models.training.data.listing import CAPTION_COLUMNS, IMAGE_COLUMNS, Listing, pick_column


def matches(location: str) -> bool:
    """Whether the name ends in .jsonl or .ndjson."""
    return Path(location).suffix.lower() in (".jsonl", ".ndjson")


def open_pairs(location: str) -> Listing:
    """Read the whole list; the first object says which keys hold the picture and the caption.

    Raises:
        TrainingError: the file cannot be read, or its first object lacks one of them.
    """
    path = Path(location)
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError as error:
        raise TrainingError(f"{location}: cannot be read ({error}).") from error
    return Listing(path, _rows([line for line in lines if line.strip()], location))


def _rows(lines: list[str], where: str) -> Iterator[tuple[str, list[str]] | None]:
    image = caption = ""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            yield None
            continue
        if not image:
            image = pick_column(row, IMAGE_COLUMNS, where)
            caption = pick_column(row, CAPTION_COLUMNS, where)
        path, texts = row.get(image), row.get(caption)
        texts = [texts] if isinstance(texts, str) else texts
        if isinstance(path, str) and isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            yield path, texts
        else:
            yield None
