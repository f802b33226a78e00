"""What a detector saw in a picture, before anybody said what to look for: asked again and again without running it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.runtime.detect.postprocess import within
from edgeclip.runtime.images.geometry import to_picture

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Proposals:
    """The Q regions of one picture. A label's logit is logit_scales x cosine + logit_biases."""

    boxes: Floats  # (Q, 4) xyxy, absolute pixels of the original picture, cut at its border
    embeddings: Floats  # (Q, D) unit rows
    logit_scales: Floats  # (Q,)
    logit_biases: Floats  # (Q,)
    objectness: Floats | None  # (Q,) 0-1; None: the model has none
    size: tuple[int, int]  # (H, W) of the picture
    model_id: str  # of the bundle that saw them

    def __len__(self) -> int:
        return len(self.boxes)

    def logits(self, vectors: Floats) -> Floats:
        """(P, D) unit rows -> (Q, P)."""
        found = self.embeddings @ vectors.T
        found *= self.logit_scales[:, None]
        found += self.logit_biases[:, None]
        return np.asarray(found, np.float32)


@dataclass(frozen=True)
class Regions:
    """One picture's rows of a detector's outputs, with boxes on the picture and those of the padding left out."""

    boxes: Floats  # (Q, 4) xyxy pixels, cut
    rows: Mapping[str, NDArray[Any]]  # every output but the boxes, (Q, ...)
    size: tuple[int, int]  # (H, W)

    @classmethod
    def of(cls, outputs: Mapping[str, NDArray[Any]], spec: Preprocessing, size: tuple[int, int]) -> Regions:
        """From the graph's own arrays, which are looked at and not copied where every region stays."""
        boxes, rows = within(to_picture(outputs["boxes"], spec, size), size)
        every = len(rows) == len(outputs["boxes"])
        others = {k: v if every else v[rows] for k, v in outputs.items() if k != "boxes"}
        return cls(boxes, others, size)

    @property
    def objectness(self) -> Floats | None:
        """(Q,) 0-1; None: the graph gives none."""
        return self.rows.get("objectness")

    def proposals(self, model_id: str, *, copy: bool) -> Proposals:
        """As proposals; `copy` where they outlive the call."""
        parts = {name: np.array(row, np.float32, copy=copy or None) for name, row in self.rows.items()}
        return Proposals(
            self.boxes,
            parts["region_embeddings"],
            parts["logit_scales"],
            parts["logit_biases"],
            parts.get("objectness"),
            self.size,
            model_id,
        )
