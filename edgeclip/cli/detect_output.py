"""What `edgeclip detect` writes of pictures: annotated copies, JSON Lines, COCO JSON, YOLO text."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclip.cli.common import emit
from edgeclip.files import write_file

if TYPE_CHECKING:
    from edgeclip import Detections


class Outputs(contextlib.ExitStack):
    """Every place that a picture's detections go to.

    Args:
        drawn: a folder for annotated copies.
        lines: a file for JSON Lines, "-": stdout.
        form: "coco" or "yolo".
        place: where `form` is written: a file ("-": stdout), or a folder.
    """

    def __init__(self, drawn: str | None, lines: str | None, form: str | None, place: str | None) -> None:
        super().__init__()
        self._drawn, self._form = Path(drawn) if drawn else None, form
        self._place = Path(place) if place else None
        self._used: set[str] = set()
        self._coco: list[tuple[str, Detections]] = []
        self._lines = None
        if lines is not None:
            from edgeclip.runtime.video.sinks import JsonLines

            self._lines = JsonLines(lines)
            self.callback(self._lines.close)

    def finish(self) -> None:
        """Write what needs all pictures. Raises InputError for a place that cannot be written."""
        if self._form == "coco" and self._place is not None:
            if str(self._place) == "-":
                emit(_coco(self._coco))
            else:
                write_file(self._place, json.dumps(_coco(self._coco), ensure_ascii=False))

    def take(self, path: str, found: Detections) -> None:
        """Write one picture's. Raises InputError for a place that cannot be written."""
        if self._lines is not None:
            self._lines.write({"path": path, **found.to_dict()})
        stem = self._stem(path) if self._drawn or self._form == "yolo" else ""
        if self._drawn is not None:
            from edgeclip.runtime.video.sinks import not_among

            not_among(path, self._drawn)
            write_file(self._drawn / f"{stem}.jpg", _annotated(path, found))
        if self._form == "yolo" and self._place is not None:
            if len(self._used) == 1:
                names = [" ".join(label.split()) for label in found.labels]  # one a line, whatever is in it
                write_file(self._place / "classes.txt", "".join(f"{name}\n" for name in names))
            write_file(self._place / f"{stem}.txt", found.to_yolo(scores=True))
        elif self._form == "coco":
            self._coco.append((path, found))

    def _stem(self, path: str) -> str:
        """The picture's own name; folders below may repeat one."""
        stem, number = Path(path).stem, 2
        while stem in self._used:
            stem, number = f"{Path(path).stem}-{number}", number + 1
        self._used.add(stem)
        return stem


def _annotated(path: str, found: Detections) -> bytes:
    """The picture with its boxes, as JPEG."""
    import numpy as np
    from PIL import Image

    from edgeclip.runtime.images import decode
    from edgeclip.runtime.video.draw import draw

    stream = io.BytesIO()
    Image.fromarray(draw(np.array(decode(path).image), found)).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def _coco(rows: list[tuple[str, Detections]]) -> dict[str, Any]:
    """A data set as COCO writes it, with scores; ids count from 1."""
    labels = rows[0][1].labels if rows else ()
    images, annotations = [], list[dict[str, Any]]()
    for number, (path, found) in enumerate(rows, 1):
        height, width = found.size
        images.append({"id": number, "file_name": path, "height": height, "width": width})
        for row in found.to_coco(number, range(1, len(labels) + 1)):
            area = row["bbox"][2] * row["bbox"][3]
            annotations.append({"id": len(annotations) + 1, **row, "area": area, "iscrowd": 0})
    categories = [{"id": i, "name": label} for i, label in enumerate(labels, 1)]
    return {"images": images, "categories": categories, "annotations": annotations}
