"""COCO's instances: a picture's boxes with the names of their categories, or with a phrase of their own.

An annotation's "phrase", "caption" or "text" goes before its category's name; so does a picture's "caption" before the names of what it
shows. Crowds are left out, and pictures without a box and caption.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeclip.errors import TrainingError
from edgeclip.models.training.data.listing import CAPTION_COLUMNS
from edgeclip.models.training.data.region_tables import BadBoxes, Named, RegionTable, texts_of

PHRASES = ("phrase", "caption", "text")

log = logging.getLogger(__name__)


def matches(location: str) -> bool:
    """Whether the name ends in .json."""
    return Path(location).suffix.lower() == ".json"


def open_regions(location: str, images: str) -> RegionTable:
    """Read the whole file. Pictures lie in `images`, or else beside the file, or in `images/` there.

    Raises:
        TrainingError: the file cannot be read, is not of COCO's form, or holds no named box.
    """
    path = Path(location)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{location}: cannot be read ({error}).") from error
    try:
        pictures = {picture["id"]: picture for picture in data["images"]}
        names = {category["id"]: str(category["name"]) for category in data.get("categories", [])}
        annotations = [
            (number, row, names.get(row.get("category_id")))
            for number, row in enumerate(data["annotations"])
            if row["image_id"] in pictures
        ]
        files = [str(picture["file_name"]) for picture in pictures.values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"{location}: expected COCO's images, annotations and categories; {type(error).__name__}: {error}."
        ) from error
    return RegionTable(_rows(pictures, annotations, _folder(path, images, files), location), location)


def _folder(path: Path, images: str, files: Sequence[str]) -> Path:
    tried = [Path(images)] if images else [path.parent, path.parent / "images"]
    for folder in tried:
        if files and os.path.isfile(folder / files[0]):  # noqa: PTH113  (Path.is_file raises for a name too long)
            return folder
    raise TrainingError(
        f"images: {files[0] if files else 'no picture'} of {path} is not in {' nor in '.join(map(str, tried))}. "
        "Set images=FOLDER."
    )


def _rows(
    pictures: dict[Any, Any],
    annotations: Sequence[tuple[int, Any, str | None]],
    folder: Path,
    where: str,
) -> Iterator[tuple[str, Path, Sequence[str], list[Named]]]:
    bad, found = BadBoxes(where, log), defaultdict(list)
    for number, row, name in annotations:
        if row.get("iscrowd"):
            continue
        text = next((row[key] for key in PHRASES if key in row), name)
        if entry := bad.check(_corners(row.get("bbox")), text, f"annotations[{number}] (id {row.get('id')})"):
            found[row["image_id"]].append(entry)
    bad.close()
    for key, picture in pictures.items():
        captions = texts_of(next((picture[name] for name in CAPTION_COLUMNS if name in picture), []))
        if captions or found[key]:
            yield str(picture["file_name"]), folder / str(picture["file_name"]), captions, found[key]


def _corners(box: Any) -> Any:
    """COCO's x, y, width, height as xyxy; what is no box stays, to be named as it came."""
    try:
        x, y, width, height = box
        return [x, y, x + width, y + height]
    except (TypeError, ValueError, OverflowError):
        return box
