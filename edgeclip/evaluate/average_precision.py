"""Average precision of detections, by faster-coco-eval: COCO's twelve figures, LVIS's rules, and the groups of a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.evaluate.annotations import Annotations, Boxes, boxes_of, number_of, read_json

_RESAMPLES = 200  # of the interval: its ends then move by a tenth of its width from seed to seed
# pictures x classes up to which the interval is made: 1 us each and draw, 8 s in all
_MOST_RESAMPLED = 40_000
_LVIS_MOST = 300  # detections of a picture that LVIS looks at
_COCO_MOST = (1, 10, 100)  # of a picture and class that COCO looks at


@dataclass(frozen=True, eq=False)
class Found:
    """N detections of any pictures."""

    boxes: Boxes
    scores: NDArray[np.float64]  # (N,)

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO's list of results."""
        parts = (self.boxes.images, self.boxes.categories, self.boxes.xywh, self.scores)
        return [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in zip(*(part.tolist() for part in parts), strict=True)
        ]

    def at(self, rows: NDArray[Any]) -> Found:
        """Some of them."""
        boxes = self.boxes
        return Found(Boxes(boxes.images[rows], boxes.categories[rows], boxes.xywh[rows]), self.scores[rows])

    def among(self, annotations: Annotations) -> Found:
        """Those in pictures, and of categories, that are annotated."""
        rows = np.isin(self.boxes.images, [image.id for image in annotations.images])
        return self.at(rows & np.isin(self.boxes.categories, [c.id for c in annotations.categories]))


def read_found(path: Path, annotations: Annotations) -> Found:
    """A COCO file of results.

    Raises:
        InputError: the file cannot be read, or a row is no detection in a picture of the annotations.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(
            f"{path}: expected COCO results, a list of objects with image_id, category_id, bbox and score."
        )
    boxes = boxes_of(path, "results", rows, annotations.images, annotations.categories)
    scores = [number_of(path, f"results[{i}].score", row.get("score")) for i, row in enumerate(rows)]
    return Found(boxes, np.array(scores, np.float64))


@dataclass(frozen=True)
class Group:
    """Classes of a split, or one class."""

    name: str
    classes: int  # that have boxes, and so figures
    boxes: int  # crowds not counted
    ap: float | None  # mean over the IoUs 0.50, 0.55, ..., 0.95; None: no class has a box
    ap50: float | None


@dataclass(frozen=True)
class Precision:
    """How well detections agree with annotations. None: there is nothing that it could be measured on."""

    pictures: int
    boxes: int  # crowds not counted
    detections: int  # judged
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None  # objects below 32 x 32 pixels
    ap_medium: float | None
    ap_large: float | None  # from 96 x 96 pixels
    ar: dict[
        str, float | None
    ]  # by detections allowed: "1", "10", "100" of a class (COCO), "300" of a picture (LVIS)
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    groups: tuple[Group, ...]  # of the split
    per_class: tuple[Group, ...]
    ap50_interval: (
        tuple[float, float] | None
    )  # 95 %, pictures drawn anew; None: too many to do so, or nothing found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def precision_of(
    annotations: Annotations, found: Found, *, interval: bool = True, seed: int = 0
) -> Precision:
    """Judge detections.

    Args:
        interval: also of AP50, by 200 draws of pictures, where pictures x classes are 40,000 or fewer. A class that a draw holds
            no picture of drops out of it: with few pictures the interval lies a little high.
    Raises:
        MissingExtraError: faster-coco-eval is not installed.
    """
    judged = _federated(annotations, found) if annotations.lvis else found
    whole = _evaluator(annotations, judged)
    whole.evaluate()
    whole.accumulate()
    # (IoUs, recalls, classes, areas, allowed detections) and the same without recalls; -1: nothing to measure
    precision, recall = np.asarray(whole.eval["precision"]), np.asarray(whole.eval["recall"])
    real = ~annotations.crowd
    groups = [
        _group(
            name, [i for i, c in enumerate(annotations.categories) if c.group == name], annotations, precision
        )
        for name in annotations.groups
    ]
    every = [_group(c.name, [i], annotations, precision) for i, c in enumerate(annotations.categories)]
    allowed = (_LVIS_MOST,) if annotations.lvis else _COCO_MOST
    sizes = len(annotations.images) * len(annotations.categories)
    drawn = interval and sizes <= _MOST_RESAMPLED and len(judged.scores) > 0
    return Precision(
        pictures=len(annotations.images),
        boxes=int(real.sum()),
        detections=len(judged.scores),
        ap=_mean(precision[..., 0, -1]),
        ap50=_mean(precision[0, ..., 0, -1]),
        ap75=_mean(precision[5, ..., 0, -1]),
        ap_small=_mean(precision[..., 1, -1]),
        ap_medium=_mean(precision[..., 2, -1]),
        ap_large=_mean(precision[..., 3, -1]),
        ar={str(most): _mean(recall[..., 0, i]) for i, most in enumerate(allowed)},
        ar_small=_mean(recall[..., 1, -1]),
        ar_medium=_mean(recall[..., 2, -1]),
        ar_large=_mean(recall[..., 3, -1]),
        groups=tuple(groups),
        per_class=tuple(every),
        ap50_interval=_interval(annotations, judged, seed) if drawn else None,
    )


def _group(name: str, columns: Sequence[int], annotations: Annotations, precision: NDArray[Any]) -> Group:
    ids = [annotations.categories[i].id for i in columns]
    held = annotations.boxes.categories[~annotations.crowd]
    part = precision[:, :, columns, 0, -1]
    return Group(
        name,
        classes=int((part[0, 0] > -1).sum()),
        boxes=int(np.isin(held, ids).sum()),
        ap=_mean(part),
        ap50=_mean(part[0]),
    )


def _mean(values: NDArray[Any]) -> float | None:
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def _federated(annotations: Annotations, found: Found) -> Found:
    """What LVIS judges: of each picture's 300 best those whose class is known to be in it, or not to be."""
    known = set(zip(annotations.boxes.images.tolist(), annotations.boxes.categories.tolist(), strict=True))
    known |= {(image.id, category) for image in annotations.images for category in image.absent}
    order = np.lexsort((-found.scores, found.boxes.images))  # stable: of equal scores the first
    images = found.boxes.images[order]
    first = np.searchsorted(images, images)  # where each picture's rows begin
    rows = np.sort(order[np.arange(len(order)) - first < _LVIS_MOST])
    pairs = zip(found.boxes.images[rows].tolist(), found.boxes.categories[rows].tolist(), strict=True)
    return found.at(rows[np.fromiter((pair in known for pair in pairs), bool, len(rows))])


def _evaluator(annotations: Annotations, found: Found, **options: Any) -> Any:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise MissingExtraError(
            "average precision needs faster-coco-eval. Install it: pip install 'edgeclip[eval]'."
        ) from error
    truth = COCO(_coco(annotations))
    judge = COCOeval_faster(
        truth, truth.loadRes(found.to_coco()), "bbox", lvis_style=annotations.lvis, **options
    )
    judge.params.catIds = [category.id for category in annotations.categories]
    judge.params.imgIds = [image.id for image in annotations.images]
    judge.params.maxDets = [_LVIS_MOST] if annotations.lvis else list(_COCO_MOST)
    return judge


def _coco(annotations: Annotations) -> dict[str, Any]:
    """As the evaluator reads it; boxes are numbered from 1, since it takes a match with number 0 for none."""
    letters = {"rare": "r", "common": "c", "frequent": "f"}
    boxes = annotations.boxes
    parts = (boxes.images, boxes.categories, boxes.xywh, annotations.areas, annotations.crowd.astype(int))
    rows = zip(*(part.tolist() for part in parts), strict=True)
    return {
        "images": [
            {
                "id": image.id,
                "height": image.size[0],
                "width": image.size[1],
                "neg_category_ids": list(image.absent),
                "not_exhaustive_category_ids": list(image.partial),
            }
            for image in annotations.images
        ],
        "categories": [
            {"id": c.id, "name": c.name, "frequency": letters.get(c.group, "f")}
            for c in annotations.categories
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
            for i, (image, category, box, area, crowd) in enumerate(rows, 1)
        ],
    }


def _interval(annotations: Annotations, found: Found, seed: int) -> tuple[float, float] | None:
    """Of AP50: pictures are drawn with replacement, and what was matched in each is summed up anew."""
    judge = _evaluator(annotations, found, separate_eval=True)
    judge.params.iouThrs = np.array([0.5])
    judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], ["all"]
    judge.params.maxDets = judge.params.maxDets[-1:]
    judge.evaluate()
    draws = [value for value in _draws(judge, len(annotations.images), seed) if value is not None]
    if not draws:
        return None
    low, high = np.percentile(draws, [2.5, 97.5]).tolist()
    return low, high


def _draws(judge: Any, pictures: int, seed: int) -> Iterator[float | None]:
    matches = judge._evalImgs_cpp  # class by class, picture by picture
    rng = np.random.default_rng(seed)
    for _ in range(_RESAMPLES):
        drawn = rng.integers(0, pictures, pictures).tolist()
        judge._evalImgs_cpp = [
            matches[start + i] for start in range(0, len(matches), pictures) for i in drawn
        ]
        judge.accumulate()
        yield _mean(np.asarray(judge.eval["precision"]))
