"""How well a bundle of nano finds drawings in composed scenes. Runs on the bundle alone, without PyTorch.

    python examples/nano/evaluate_detection.py SCENES BUNDLE [COUNT]

SCENES is what `prepare.py DOWNLOADS SCENES 128` wrote. Each set is COUNT scenes of a fixed seed; a scene is asked for the names
that it shows and for 20 (and 100) others of the set's own names, so that a wrong answer costs. Beside the detector stand

    windows     the classifier on a sliding window of three sizes
    crops       the classifier on the 40 boxes that the detector is surest of, whatever they hold
    true boxes  the classifier on the boxes that are really there: what nano's knowledge of names would allow
    chance      those boxes, and one of the names asked for by lot
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scenes import SIDE, Scene, compose, drawings, held_back, trained

import edgeclip
from edgeclip.evaluate.annotations import Annotations, Boxes, Category, Image
from edgeclip.evaluate.average_precision import Found as Judged
from edgeclip.evaluate.average_precision import precision_of
from edgeclip.runtime.detect.nms import iou_matrix, nms

# title -> file, seed, which items its scenes are composed of, whether these are turned and recoloured
SETS: dict[str, tuple[str, int, Callable[[dict[str, Any]], bool], bool]] = {
    "unseen style, names trained": ("unseen", 11, trained, False),
    "unseen style, names without boxes": (
        "unseen",
        12,
        lambda item: item["split"] == "train" and held_back(item["name"]),
        False,
    ),
    "unseen style, names untrained": ("unseen", 13, lambda item: item["split"] == "untrained", False),
    "seen styles, drawings trained": (
        "training",
        14,
        lambda item: trained(item) and item["style"] != "clip-art",
        True,
    ),
}
LEAST, MOST = 0.001, 100  # smallest score, most detections of a scene that the evaluator is given


class Truth(Protocol):
    """What stands in a scene: M objects."""

    @property
    def boxes(self) -> NDArray[np.float32]: ...  # (M, 4) xyxy pixels
    @property
    def names(self) -> Sequence[str]: ...  # M


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
    names = sorted({name for scene in truth for name in scene.names})
    boxes, areas, _ = _rows(truth, names, [np.zeros(len(scene.boxes)) for scene in truth])
    images = tuple(Image(i, "", (SIDE, SIDE)) for i in range(len(truth)))
    categories = tuple(Category(i, name) for i, name in enumerate(names))
    annotations = Annotations(
        Path("scenes"), images, categories, boxes, areas, np.zeros(len(areas), bool), lvis=False
    )
    seen, _, scores = _rows(found, names, [scene.scores for scene in found])
    figures = precision_of(annotations, Judged(seen, scores), interval=False)
    return {"AP": figures.ap or 0.0, "AP50": figures.ap50 or 0.0}


def _rows(
    scenes: Sequence[Truth], names: list[str], scores: Sequence[NDArray[Any]]
) -> tuple[Boxes, NDArray[np.float64], NDArray[np.float64]]:
    """-> boxes, areas and scores of what bears one of `names`."""
    ids = {name: i for i, name in enumerate(names)}
    rows = [
        (image, ids[name], *corners, score)
        for image, scene in enumerate(scenes)
        for name, corners, score in zip(
            scene.names, scene.boxes.tolist(), scores[image].tolist(), strict=True
        )
        if name in ids
    ]
    table = np.array(rows, np.float64).reshape(-1, 7)
    sides = table[:, 4:6] - table[:, 2:4]
    places = table[:, :2].astype(np.int64)
    return (
        Boxes(places[:, 0], places[:, 1], np.concatenate([table[:, 2:4], sides], 1)),
        sides.prod(1),
        table[:, 6],
    )


def best_threshold(truth: Sequence[Truth], found: Sequence[Found]) -> tuple[float, float]:
    """-> the smallest score at which F1 is best, and that F1. Right: the same name, an IoU of a half or more, each object once."""
    scores: list[float] = []
    right: list[bool] = []
    for scene, seen in zip(truth, found, strict=True):
        fits = iou_matrix(seen.boxes, scene.boxes) >= 0.5
        fits &= np.array(seen.names)[:, None] == np.array(scene.names)
        for row in np.argsort(-seen.scores, kind="stable").tolist():
            scores.append(float(seen.scores[row]))
            right.append(bool(fits[row].any()))
            fits[:, fits[row].argmax()] &= not right[-1]
    if not scores:
        return 1.0, 0.0
    order = np.argsort(-np.array(scores), kind="stable")
    hits = np.cumsum(np.array(right)[order])
    objects = sum(len(scene.boxes) for scene in truth)
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + objects)
    best = int(f1.argmax())
    return scores[order[best]], float(f1[best])


@dataclass(frozen=True)
class Crops:
    """Parts of a scene as the classifier sees them. M boxes."""

    boxes: NDArray[np.float32]  # (M, 4) xyxy pixels
    embeddings: NDArray[np.float32]  # (M, D)
    weights: NDArray[np.float32] | float = 1.0  # (M,) with which their scores are multiplied

    def ask(self, model: Any, names: list[str]) -> Found:
        """Each crop's names."""
        cosines = self.embeddings @ model.make_labels(names).vectors.T
        logits = model.bundle.manifest.logit_scale * cosines
        scores = np.exp(logits - logits.max(1, keepdims=True))
        scores *= np.broadcast_to(self.weights, len(scores))[:, None] / scores.sum(1, keepdims=True)
        rows, labels = np.nonzero(scores > LEAST)
        values = scores[rows, labels]
        kept = nms(self.boxes[rows], values, labels, 0.5, most=MOST)
        return Found(self.boxes[rows[kept]], values[kept], [names[i] for i in labels[kept].tolist()])


@dataclass(frozen=True)
class Regions:
    """A scene as the bundle's own detector sees it."""

    seen: Any  # its proposals

    def ask(self, model: Any, names: list[str]) -> Found:
        """Its detections."""
        found = model.detect_in(self.seen, names, threshold=LEAST, max_detections=MOST)
        return Found(found.boxes, found.scores, found.names)


@dataclass(frozen=True)
class Lot:
    """The boxes that are there."""

    boxes: NDArray[np.float32]

    def ask(self, model: Any, names: list[str]) -> Found:
        """Names by lot."""
        rng = np.random.default_rng(int(self.boxes.sum()))
        drawn = [names[i] for i in rng.integers(len(names), size=len(self.boxes)).tolist()]
        return Found(self.boxes, rng.random(len(self.boxes)).astype(np.float32), drawn)


def crops_of(
    model: Any, scene: Scene, boxes: NDArray[np.float32], weights: NDArray[np.float32] | None = None
) -> Crops:
    """Each box cut out and embedded; those of less than three pixels are left out."""
    corners = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], 1).clip(0, SIDE).astype(int)
    good = (corners[:, 2:] - corners[:, :2] > 2).all(1)
    pieces = [scene.picture[y0:y1, x0:x1] for x0, y0, x1, y1 in corners[good].tolist()]
    return Crops(
        boxes[good], model.embed_images(pieces, batch_size=64), 1.0 if weights is None else weights[good]
    )


def windows(model: Any, scene: Scene) -> Crops:
    """Every window of 32, 64 and 128 pixels, half a window apart."""
    boxes = [
        (x, y, x + side, y + side)
        for side in (32, 64, 128)
        for y in range(0, SIDE - side + 1, side // 2)
        for x in range(0, SIDE - side + 1, side // 2)
    ]
    return crops_of(model, scene, np.array(boxes, np.float32))


def crops(model: Any, scene: Scene) -> Crops:
    """The detector's surest boxes."""
    seen = model.propose(scene.picture)
    apart = nms(seen.boxes, seen.objectness, np.zeros(len(seen), np.int64), 0.5, most=40)
    return crops_of(model, scene, seen.boxes[apart], seen.objectness[apart])


METHODS: dict[str, Callable[[Any, Scene], Regions | Crops | Lot]] = {
    "detector": lambda model, scene: Regions(model.propose(scene.picture)),
    "windows": windows,
    "crops": crops,
    "true boxes": lambda model, scene: crops_of(model, scene, scene.boxes),
    "chance": lambda model, scene: Lot(scene.boxes),
}


def main() -> None:
    folder, bundle = Path(sys.argv[1]), sys.argv[2]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 500
    methods = sys.argv[4].split(",") if len(sys.argv) > 4 else list(METHODS)
    print(
        f"| {count} scenes a set | others asked | "
        + " | ".join(methods)
        + " |\n|"
        + "---|" * (2 + len(methods))
    )
    with edgeclip.load(bundle) as model:
        for title, (kind, seed, keep, varied) in SETS.items():
            source = drawings(folder, kind, keep)
            scenes = [compose(source, seed, number, varied=varied) for number in range(count)]
            shown = len({name for scene in scenes for name in scene.names})
            looked = {name: [METHODS[name](model, scene) for scene in scenes] for name in methods}
            for others in (20, 100):
                prompts = asked(scenes, others, seed)
                cells = []
                for seen in looked.values():
                    found = [one.ask(model, names) for one, names in zip(seen, prompts, strict=True)]
                    scores = average_precision(scenes, found)
                    cells.append(f"{100 * scores['AP50']:.1f} ({100 * scores['AP']:.1f})")
                print(f"| {title} ({shown}) | {others} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
