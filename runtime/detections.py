"""What a detector found in one picture: plain arrays, one row a detection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
