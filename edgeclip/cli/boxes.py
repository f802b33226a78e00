"""Boxes files: what `--boxes` reads. One JSON object a line, {"path": "a.jpg", "boxes": [[x1, y1, x2, y2], ...]}."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeclip.errors import EdgeClipError, InputError

T = TypeVar("T")

boxes_option = click.option(
    "--boxes", "boxes_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Regions instead of whole pictures: a line for each, {\"path\": ..., \"boxes\": [[x1, y1, x2, y2], ...]} in pixels; what "
    "`edgeclip detect --json` prints will do.",
)  # fmt: skip

_WANTED = 'expected {"path": "a.jpg", "boxes": [[x1, y1, x2, y2], ...]}'


def read_boxes(file: Path) -> tuple[list[Path], list[list[Any]]]:
    """-> the pictures, paths as they stand in the file, and the boxes of each. Lines that hold an "error" are passed over.

    Raises:
        InputError: the file cannot be read, or a line is something else; says which.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--boxes {file}: cannot be read ({error}).") from error
    paths, boxes = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"--boxes {file}:{number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: {_WANTED}, got no JSON ({error}).") from error
        if isinstance(entry, dict) and "error" in entry:  # a picture that failed before
            continue
        found = _boxes_in(entry)
        if found is None:
            raise InputError(f"{where}: {_WANTED}, got {line.strip()[:80]}")
        paths.append(Path(entry["path"]))
        boxes.append(found)
    if not paths:
        raise InputError(f"--boxes {file}: holds no picture. {_WANTED.capitalize()} a line.")
    return paths, boxes


def with_boxes(
    boxes: Iterable[list[Any]], results: Iterable[T | EdgeClipError]
) -> Iterator[tuple[list[Any], T] | EdgeClipError]:
    """Each picture's boxes beside what was found for them; an error stays what it is."""
    for own, result in zip(boxes, results, strict=True):
        yield result if isinstance(result, EdgeClipError) else (own, result)


def _boxes_in(entry: Any) -> list[Any] | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        return None
    found = entry.get("boxes")
    if isinstance(rows := entry.get("detections"), list):
        found = [row.get("box") if isinstance(row, dict) else None for row in rows]
    return found if isinstance(found, list) else None
