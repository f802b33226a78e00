"""What a caller of `detect` asks for, checked, and what it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.detect.examples import Example
from edgeclip.runtime.detect.prompt_tree import PromptTree
from edgeclip.runtime.detect.tiling import Tiling
from edgeclip.runtime.labels import LabelPack


@dataclass(frozen=True)
class Vocabulary:
    """Labels, ready to be looked for."""

    names: tuple[str, ...]
    vectors: NDArray[np.float32] | None  # (P, D) unit rows; None: they are baked into the graph
    own: tuple[float, ...] | None  # thresholds that a pack brings
    tree: PromptTree


@dataclass(frozen=True)
class Asked:
    """The arguments of `detect`. Raises InputError for one that cannot be used."""

    labels: Sequence[str] | LabelPack | str | None = None
    examples: Sequence[Example] = ()
    threshold: float | Mapping[str, float] | None = None
    nms_iou: float | None = None
    class_agnostic: bool | None = None
    max_detections: int = 300
    templates: Sequence[str] | None = None
    tile: Tiling | None = None

    def __post_init__(self) -> None:
        if self.max_detections < 1:
            raise InputError(f"max_detections: expected 1 or more, got {self.max_detections}.")
        if self.nms_iou is not None:
            _share(self.nms_iou, "nms_iou")
        if isinstance(self.threshold, Mapping):
            for label, value in self.threshold.items():
                _share(value, f"threshold[{label!r}]")
        elif self.threshold is not None:
            _share(self.threshold, "threshold")

    def thresholds(self, vocabulary: Vocabulary, default: float) -> NDArray[np.float32]:
        """(P,) the smallest score of each label: the caller's, else the pack's own, else `default`.

        Raises:
            InputError: a threshold for a label that is not looked for.
        """
        count = len(vocabulary.names)
        if self.threshold is not None and not isinstance(self.threshold, Mapping):
            return np.full(count, self.threshold, np.float32)
        found = np.array(vocabulary.own or [default] * count, np.float32)
        for label, value in (self.threshold or {}).items():
            if label not in vocabulary.names:
                raise InputError(
                    f"threshold: {label!r} is not among the labels {', '.join(vocabulary.names[:8])}{', ...' if count > 8 else ''}."
                )
            found[vocabulary.names.index(label)] = value
        return found


def _share(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0 <= value <= 1:
        raise InputError(f"{where}: expected 0 to 1, got {value!r}.")
