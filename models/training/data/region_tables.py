"""Pictures whose boxes are named by texts: COCO annotations, or JSON Lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError, TrainingError

# Tried in this order. Each module offers matches(location) -> bool and open_regions(location, images) -> RegionTable.
FORMATS = {
    "coco": "edgeclip.models.training.data.coco",
    "jsonl": "edgeclip.models.training.data.region_jsonl",
}
TOLD = 5  # bad boxes of a file that are named one by one
Named = tuple[tuple[float, float, float, float], str]  # xyxy pixels of the picture, and the text


class RegionTable:
    """Pairs, each with the boxes of its picture and a text for each box. Read by any number of threads."""

    def __init__(self, rows: Iterable[tuple[str, Path, Sequence[str], Sequence[Named]]], where: str) -> None:
        """`rows`: (key, the picture's path, captions, boxes with their texts)."""
        keys: list[str] = []
        self.keys: Sequence[str] = keys
        self._paths: list[Path] = []
        self._captions: list[Sequence[str]] = []
        self._boxes: list[NDArray[np.float32]] = []
        self._texts: list[Sequence[str]] = []
        for key, path, captions, named in rows:
            keys.append(key)
            self._paths.append(path)
            self._captions.append(captions)
            self._boxes.append(np.array([box for box, _ in named], np.float32).reshape(-1, 4))
            self._texts.append([text for _, text in named])
        if not self.keys:
            raise TrainingError(f"{where}: holds no picture with a caption or a named box.")
        if not any(self._texts):
            raise TrainingError(
                f"{where}: none of its {len(self.keys)} pictures has a named box. examples/pseudo_regions.py finds some for captions."
            )

    def read(self, index: int) -> tuple[Path, Sequence[str]]:
        """The picture's path and its captions: its own, or the texts of its boxes as one."""
        captions = self._captions[index] or [", ".join(dict.fromkeys(self._texts[index]))]
        if not captions[0]:
            raise InputError(f"{self.keys[index]}: no caption and no named box.")
        return self._paths[index], captions

    def regions(self, index: int) -> tuple[NDArray[np.float32], Sequence[str]]:
        """(R, 4) float32 xyxy in pixels of the upright picture, and their R texts."""
        return self._boxes[index], self._texts[index]


def open_regions(location: str, images: str) -> RegionTable:
    """Open COCO annotations (.json) or JSON Lines.

    Args:
        images: folder of the pictures; "": beside the file.
    Raises:
        TrainingError: no such file, another format, or no named box in it.
    """
    if not location:
        raise TrainingError("data: not set. Pass --set data=instances.json (COCO) or regions.jsonl.")
    for name in FORMATS.values():
        module = import_module(name)
        if module.matches(location):
            table: RegionTable = module.open_regions(location, images)
            return table
    raise TrainingError(
        f"{location}: expected boxes in COCO's .json or in .jsonl. From pairs, examples/pseudo_regions.py makes such a file; "
        "batches=mosaics needs no boxes."
    )


def texts_of(value: Any) -> list[str]:
    """A text, or those of a list that are texts; empty ones left out."""
    items = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [item.strip() for item in items if isinstance(item, str) and item.strip()]


class BadBoxes:
    """What is wrong with boxes of one file: the first few by name, the others counted."""

    def __init__(self, where: str, log: Any) -> None:
        self._where, self._log, self._count = where, log, 0

    def check(self, box: Any, text: Any, at: str) -> Named | None:
        """The box and its text, or None, reported, where they are not a box of finite numbers with an area, and a text.

        Args:
            at: where in the file, e.g. "line 3, regions[0]".
        """
        wrong = _wrong(box, text)
        if not wrong:
            return (*map(float, box),), str(text).strip()  # type: ignore[return-value]
        self._count += 1
        if self._count <= TOLD:
            self._log.warning("%s: %s: %s; it is left out", self._where, at, wrong)
        return None

    def close(self) -> None:
        """Say how many more there were."""
        if self._count > TOLD:
            self._log.warning(
                "%s: %d boxes in all cannot be used; they are left out", self._where, self._count
            )


def _wrong(box: Any, text: Any) -> str:
    if not isinstance(box, (list, tuple)) or len(box) != 4 or any(type(x) not in (int, float) for x in box):
        return f"expected a box of four numbers, got {box!r:.80}"
    # float32 holds them; NaN is not below it either
    if not all(abs(x) < 1e38 for x in box) or box[2] <= box[0] or box[3] <= box[1]:
        return f"expected a box x1 < x2, y1 < y2 of finite pixels, got {box!r:.80}"
    if not isinstance(text, str) or not text.strip():
        return f"expected a text, got {text!r:.80}"
    return ""
