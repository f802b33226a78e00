"""How well a bundle of nano finds drawings in composed scenes. Runs on the bundle alone, without PyTorch.

    python examples/nano/evaluate_detection.py SCENES BUNDLE [COUNT]

SCENES is what `prepare.py DOWNLOADS SCENES 128` wrote. Each set is COUNT scenes of a fixed seed; a scene is asked for the names
that it shows and for 20 (and 100) others of the set's own names, so that a wrong answer costs.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Truth(Protocol):
    """What stands in a scene: M objects."""

    @property
    def boxes(self) -> NDArray[np.float32]: ...  # (M, 4) xyxy pixels
    @property
    def names(self) -> tuple[str, ...]: ...  # M


@dataclass(frozen=True)
class Found:
    """What was found in a scene: M detections."""

    boxes: NDArray[np.float32]  # (M, 4) xyxy pixels
    scores: NDArray[np.float32]  # (M,)
    names: list[str]  # M


def asked(scenes: Sequence[Truth], others: int, seed: int) -> list[list[str]]:
    """For each scene the names that it shows, and `others` that other scenes of the set show."""
    every = sorted({name for scene in scenes for name in scene.names})
    prompts = []
    for number, scene in enumerate(scenes):
        shown = sorted(set(scene.names))
        rest = [name for name in every if name not in shown]
        drawn = np.random.default_rng([seed, number]).permutation(len(rest))[:others]
        prompts.append(sorted([*shown, *(rest[i] for i in drawn.tolist())]))
    return prompts


def average_precision(truth: Sequence[Truth], found: Sequence[Found]) -> dict[str, float]:
    """AP (IoU 0.5 to 0.95) and AP50, 0-1, mean over the names that the scenes show; by COCO's evaluator."""
    from faster_coco_eval import COCO, COCOeval_faster

    names = sorted({name for scene in truth for name in scene.names})
    ids = {name: i + 1 for i, name in enumerate(names)}
    boxes = [
        {"image_id": i, "category_id": ids[name], "bbox": _xywh(box), "area": _area(box), "iscrowd": 0}
        for i, scene in enumerate(truth)
        for name, box in zip(scene.names, scene.boxes, strict=True)
    ]
    annotations = [{"id": i + 1, **box} for i, box in enumerate(boxes)]
    results = [
        {"image_id": i, "category_id": ids[name], "bbox": _xywh(box), "score": float(score)}
        for i, scene in enumerate(found)
        for name, box, score in zip(scene.names, scene.boxes, scene.scores, strict=True)
        if name in ids
    ]
    if not results:
        return {"AP": 0.0, "AP50": 0.0}
    dataset = {
        "images": [{"id": i} for i in range(len(truth))],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(dataset)
        run = COCOeval_faster(coco, coco.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {"AP": float(run.stats[0]), "AP50": float(run.stats[1])}


def _xywh(box: NDArray[np.float32]) -> list[float]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def _area(box: NDArray[np.float32]) -> float:
    return float((box[2:] - box[:2]).prod())
