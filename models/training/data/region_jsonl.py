"""JSON Lines with boxes: {"image": "a.jpg", "caption": "...", "regions": [{"box": [x1, y1, x2, y2], "text": "a red cup"}]}.

Boxes are in pixels of the upright picture. A line may lack the caption, or the regions, not both.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeclip.errors import TrainingError
from edgeclip.models.training.data.jsonl import matches as matches
from edgeclip.models.training.data.listing import CAPTION_COLUMNS, IMAGE_COLUMNS
from edgeclip.models.training.data.region_tables import BadBoxes, Named, RegionTable, texts_of

log = logging.getLogger(__name__)


def open_regions(location: str, images: str) -> RegionTable:
    """Read the whole list; lines that say nothing of a picture are reported and left out.

    Raises:
        TrainingError: the file cannot be read, or holds no named box.
    """
    path = Path(location)
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError as error:
        raise TrainingError(f"{location}: cannot be read ({error}).") from error
    return RegionTable(_rows(lines, Path(images) if images else path.parent, location), location)


def _rows(
    lines: Sequence[str], folder: Path, where: str
) -> Iterator[tuple[str, Path, Sequence[str], list[Named]]]:
    bad = BadBoxes(where, log)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        row = row if isinstance(row, dict) else {}
        image = next((row[name] for name in IMAGE_COLUMNS if isinstance(row.get(name), str)), "")
        captions = texts_of(next((row[name] for name in CAPTION_COLUMNS if name in row), []))
        regions = row.get("regions", [])
        items = [x if isinstance(x, dict) else {} for x in regions] if isinstance(regions, list) else [{}]
        named = [
            bad.check(item.get("box"), item.get("text"), f"line {number}, regions[{i}]")
            for i, item in enumerate(items)
        ]
        kept = [entry for entry in named if entry is not None]
        if not image or not (captions or kept):
            log.warning(
                "%s: line %d: no picture, or neither caption nor named box; it is left out", where, number
            )
            continue
        yield image, folder / image, captions, kept
    bad.close()
