"""What a detector found in one picture: plain arrays, one row a detection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of one picture, best first. M is their number."""

    boxes: NDArray[np.float32]  # (M, 4) xyxy, absolute pixels of the original picture, cut at its border
    scores: NDArray[np.float32]  # (M,) 0-1
    label_indices: NDArray[np.int64]  # (M,) into `labels`
    labels: tuple[str, ...]  # every label that was asked for, in the caller's order
    size: tuple[int, int]  # (H, W) of the picture
    # (M,) row of the detection that this one was found within (nested prompts); -1: the whole picture. None: no nested prompts
    parents: NDArray[np.int64] | None = None
    track_ids: NDArray[np.int64] | None = None  # (M,) of a stream; -1: not (yet) tracked. None: no tracking
    extra: dict[str, Any] = field(default_factory=dict)  # arrays of M rows that a caller adds

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """(M,) the label of each detection."""
        return [self.labels[i] for i in self.label_indices.tolist()]

    def __getitem__(self, rows: NDArray[Any] | Sequence[int] | slice) -> Detections:
        """Some of them, by row numbers, a mask or a slice; parents that are left out become -1."""
        chosen = np.arange(len(self))[list(rows) if isinstance(rows, Sequence) else rows]
        parents = self.parents
        if parents is not None:
            places = np.full(len(self) + 1, -1)  # the last: of -1 itself
            places[chosen] = np.arange(len(chosen))
            parents = places[parents[chosen]]
        return replace(
            self,
            boxes=self.boxes[chosen],
            scores=self.scores[chosen],
            label_indices=self.label_indices[chosen],
            parents=parents,
            track_ids=None if self.track_ids is None else self.track_ids[chosen],
            extra={name: np.asarray(values)[chosen] for name, values in self.extra.items()},
        )

    def filter(self, mask: NDArray[np.bool_] | Sequence[bool]) -> Detections:
        """Those where the (M,) mask is True.

        Raises:
            InputError: a mask of another length, or no mask.
        """
        found = np.asarray(mask)
        if found.dtype != bool or found.shape != (len(self),):
            raise InputError(f"mask: expected ({len(self)},) bool, got {found.shape} {found.dtype}.")
        return self[found]

    def above(self, threshold: float) -> Detections:
        """Those of this score or a better one."""
        return self[self.scores >= threshold]

    def crop(self, picture: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """What is in each box, to whole pixels outwards: views of the picture.

        Args:
            picture: (H, W, 3) or (H, W), upright, the one that these were found in.
        Raises:
            InputError: a picture of another size.
        """
        if picture.shape[:2] != self.size:
            raise InputError(f"picture: expected one of {self.size} (H, W), got {picture.shape[:2]}.")
        corners = np.concatenate([np.floor(self.boxes[:, :2]), np.ceil(self.boxes[:, 2:])], axis=1)
        return [picture[y0:y1, x0:x1] for x0, y0, x1, y1 in corners.clip(0).astype(int).tolist()]

    def to_supervision(self) -> Any:
        """As `supervision.Detections`, which holds labels and size in its metadata. Needs that package; see conversions.py."""
        from edgeclip.runtime.conversions import to_supervision

        return to_supervision(self)

    @classmethod
    def from_supervision(
        cls, found: Any, labels: Sequence[str] | None = None, size: tuple[int, int] | None = None
    ) -> Detections:
        """From `supervision.Detections`. `labels` by class id and `size` (H, W) where its metadata have none. Raises InputError."""
        from edgeclip.runtime.conversions import from_supervision

        return from_supervision(found, labels, size)

    def to_coco(
        self, image_id: int | str, category_ids: Sequence[int] | Mapping[str, int]
    ) -> list[dict[str, Any]]:
        """COCO's list of results: [{"image_id", "category_id", "bbox": [x, y, w, h], "score"}, ...].

        Args:
            category_ids: of the labels, in their order or by name.
        """
        from edgeclip.runtime.conversions import to_coco

        return to_coco(self, image_id, category_ids)

    @classmethod
    def from_coco(
        cls, rows: Iterable[Mapping[str, Any]], categories: Mapping[int, str], size: tuple[int, int]
    ) -> Detections:
        """From COCO results or annotations of one picture of (H, W) pixels; without a score it is 1. `categories`: id -> label."""
        from edgeclip.runtime.conversions import from_coco

        return from_coco(rows, categories, size)

    def to_yolo(self, *, scores: bool = False) -> str:
        """YOLO text: a line "label_index cx cy w h[ score]" for each, 0-1 of the picture's sides."""
        from edgeclip.runtime.conversions import to_yolo

        return to_yolo(self, scores)

    @classmethod
    def from_yolo(cls, text: str, labels: Sequence[str], size: tuple[int, int]) -> Detections:
        """From YOLO text of a picture of (H, W) pixels, with or without scores. Raises InputError, naming the line."""
        from edgeclip.runtime.conversions import from_yolo

        return from_yolo(text, labels, size)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: {"size", "detections": [{"label", "label_index", "score", "box"[, "parent", "track_id"]}, ...]}."""
        rows: list[dict[str, Any]] = []
        for i, name in enumerate(self.names):
            row: dict[str, Any] = {
                "label": name,
                "label_index": int(self.label_indices[i]),
                "score": round(float(self.scores[i]), 6),
                "box": [round(float(x), 2) for x in self.boxes[i]],
            }
            if self.parents is not None:
                row["parent"] = int(self.parents[i])
            if self.track_ids is not None:
                row["track_id"] = int(self.track_ids[i])
            rows.append(row)
        return {"size": list(self.size), "detections": rows}
