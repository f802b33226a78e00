"""Detections as others write them: supervision, COCO JSON, YOLO text. Called through `Detections`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.runtime.detections import Detections

# Columns of supervision's data that are fields of ours; "rows" are what parents number, which supervision drops and reorders.
_OWN = ("class_name", "parents", "rows")


def to_supervision(found: Detections) -> Any:
    """As `supervision.Detections`. Raises MissingExtraError without the package."""
    try:
        import supervision
    except ImportError as error:
        raise MissingExtraError("supervision is not installed. `pip install supervision`.") from error
    data = {"class_name": np.array(found.names, dtype=str), **found.extra}
    if found.parents is not None:
        data |= {"parents": found.parents, "rows": np.arange(len(found))}
    return supervision.Detections(
        xyxy=found.boxes,
        confidence=found.scores,
        class_id=found.label_indices,
        tracker_id=found.track_ids,
        data=data,
        metadata={"labels": found.labels, "size": found.size},
    )


def from_supervision(
    found: Any, labels: Sequence[str] | None = None, size: tuple[int, int] | None = None
) -> Detections:
    """From `supervision.Detections`. Raises InputError where labels or size are nowhere to be had."""
    count, data = len(found.xyxy), dict(found.data)
    names = labels if labels is not None else found.metadata.get("labels")
    size = size if size is not None else found.metadata.get("size")
    if size is None:
        raise InputError(
            "size: expected (H, W) of the picture, which these detections do not hold; pass size=."
        )
    indices = found.class_id
    if names is None and "class_name" in data:
        names, indices = np.unique(np.asarray(data["class_name"]), return_inverse=True)
    if names is None or indices is None:
        raise InputError("labels: these detections hold neither class names nor labels; pass labels=.")
    indices = _indices(indices, len(names), "class_id")
    scores = np.ones(count) if found.confidence is None else found.confidence
    return Detections(
        boxes=np.asarray(found.xyxy, np.float32).reshape(-1, 4),
        scores=np.asarray(scores, np.float32),
        label_indices=indices,
        labels=tuple(str(name) for name in names),
        size=(int(size[0]), int(size[1])),
        parents=None if "parents" not in data else _parents(data["parents"], data.get("rows")),
        track_ids=None if found.tracker_id is None else np.asarray(found.tracker_id, np.int64),
        extra={name: np.asarray(values) for name, values in data.items() if name not in _OWN},
    )


def to_coco(
    found: Detections, image_id: int | str, category_ids: Sequence[int] | Mapping[str, int]
) -> list[dict[str, Any]]:
    """COCO's list of results."""
    if isinstance(category_ids, Mapping):
        if missing := [name for name in found.labels if name not in category_ids]:
            raise InputError(f"category_ids: none for the label {missing[0]!r}. Give one for each label.")
        ids = [category_ids[name] for name in found.labels]
    else:
        ids = list(category_ids)
        if len(ids) != len(found.labels):
            raise InputError(
                f"category_ids: expected {len(found.labels)}, one for each label, got {len(ids)}."
            )
    boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
    return [
        {"image_id": image_id, "category_id": int(ids[label]), "bbox": box, "score": score}
        for label, box, score in zip(
            found.label_indices.tolist(), boxes.tolist(), found.scores.tolist(), strict=True
        )
    ]


def from_coco(
    rows: Iterable[Mapping[str, Any]], categories: Mapping[int, str], size: tuple[int, int]
) -> Detections:
    """From COCO results or annotations of one picture."""
    numbers = {category: i for i, category in enumerate(categories)}
    boxes, scores, indices = [], [], []
    for i, row in enumerate(rows):
        try:
            x, y, w, h, score = (float(value) for value in (*row["bbox"], row.get("score", 1.0)))
            indices.append(numbers[row["category_id"]])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"rows[{i}]: expected a bbox [x, y, w, h] and a category_id of {sorted(numbers)[:5]}..., got {row!r:.120}."
            ) from error
        boxes.append([x, y, x + w, y + h])
        scores.append(score)
    return _sorted(boxes, scores, indices, tuple(categories.values()), size)


def to_yolo(found: Detections, scores: bool) -> str:
    """YOLO text, a line for each; "" for none. Six decimals: a thousandth of a pixel at a side of 1,000."""
    sides = np.array([found.size[1], found.size[0]], np.float64)
    low, high = found.boxes[:, :2] / sides, found.boxes[:, 2:] / sides
    lines = [
        f"{label} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}" + (f" {score:.6f}" if scores else "")
        for label, (cx, cy), (w, h), score in zip(
            found.label_indices.tolist(),
            ((low + high) / 2).tolist(),
            (high - low).tolist(),
            found.scores.tolist(),
            strict=True,
        )
    ]
    return "".join(line + "\n" for line in lines)


def from_yolo(text: str, labels: Sequence[str], size: tuple[int, int]) -> Detections:
    """From YOLO text, with or without scores."""
    boxes, scores, indices = [], [], []
    sides = np.array([size[1], size[0]] * 2, np.float64)
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            label, *values = (float(part) for part in line.split())
        except ValueError:
            label, values = -1, []
        if len(values) not in (4, 5) or label not in range(len(labels)) or not np.isfinite(values).all():
            raise InputError(
                f"line {number}: expected 'label cx cy w h[ score]' with a label of 0 to {len(labels) - 1}, got {line[:60]!r}."
            )
        cx, cy, w, h, *score = values
        boxes.append(np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * sides)
        scores.append(score[0] if score else 1.0)
        indices.append(int(label))
    return _sorted(boxes, scores, indices, tuple(labels), size)


def _sorted(
    boxes: Sequence[Any],
    scores: Sequence[float],
    indices: Sequence[int],
    labels: tuple[str, ...],
    size: tuple[int, int],
) -> Detections:
    found = Detections(
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(scores, np.float32),
        np.asarray(indices, np.int64),
        labels,
        (int(size[0]), int(size[1])),
    )
    return found[np.argsort(-found.scores, kind="stable")]


def _parents(numbers: Any, rows: Any) -> NDArray[np.int64]:
    """Where the rows of these numbers are now; -1: nowhere, or in several places, as where two pictures were merged."""
    found, places = np.asarray(numbers, np.int64), np.asarray([] if rows is None else rows, np.int64)
    same = found[:, None] == places
    return np.where(same.sum(axis=1) == 1, same.argmax(axis=1) if len(places) else -1, -1)


def _indices(values: Any, count: int, where: str) -> NDArray[np.int64]:
    found = np.asarray(values, np.int64)
    if len(found) and not (found.min() >= 0 and found.max() < count):
        raise InputError(
            f"{where}: expected 0 to {count - 1} for {count} labels, got {found.min()} to {found.max()}."
        )
    return found
