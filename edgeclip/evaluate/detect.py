"""A model's detections, and its names of given boxes, in every annotated picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import EdgeClipError, InputError
from edgeclip.evaluate.annotations import Annotations, Boxes, Image
from edgeclip.evaluate.average_precision import Found
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.model import Model

_log = logging.getLogger(__name__)

# Shows progress while a number of things pass through.
Watch = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True)
class Settings:
    """How a model is asked. `threshold`: AP wants the weak ones too, and a picture's limit cuts them off."""

    threshold: float = 0.001
    nms_iou: float | None = None  # None: the bundle's
    class_agnostic: bool | None = None  # None: the bundle's
    max_detections: int = 100  # of a picture; LVIS looks at 300
    batch_size: int = 1


@dataclass(frozen=True, eq=False)
class Run:
    """What a model found."""

    found: Found
    failures: tuple[tuple[str, str], ...]  # (file, reason): of such a picture every box counts as missed


def texts_of(annotations: Annotations, lines: Sequence[str] | None) -> list[str]:
    """What the model is asked for, one text a category.

    Args:
        lines: in the order of the categories' ids; None: their names, with spaces for the underscores of LVIS.
    Raises:
        InputError: another number of texts, or one twice.
    """
    if lines is None:
        return [name.replace("_", " ") for name in annotations.names]
    if len(lines) != len(annotations.categories):
        raise InputError(
            f"labels: expected {len(annotations.categories)}, one a line for each category of {annotations.path} in the order of "
            f"their ids, got {len(lines)}."
        )
    if twice := next((line for i, line in enumerate(lines) if line in lines[:i]), None):
        raise InputError(f"labels: {twice!r} is there twice. Expected a text of its own for each category.")
    return list(lines)


def files_of(annotations: Annotations, folder: Path) -> list[Path]:
    """Where each picture lies: below the folder by its name, or by the last part of that.

    Raises:
        InputError: there is no such folder, or it holds none of them.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Expected the one that the pictures lie in.")
    paths, there = [], False
    for image in annotations.images:
        whole, short = folder / image.name, folder / PurePosixPath(image.name).name
        path = short if not whole.exists() and short.exists() else whole
        there |= path.exists()
        paths.append(path)
    if not there:
        raise InputError(
            f"{folder}: holds none of the {len(paths)} pictures that {annotations.path} names, e.g. {annotations.images[0].name}. "
            "Pass the folder they lie in."
        )
    return paths


def detect_all(
    model: Model,
    annotations: Annotations,
    folder: Path,
    pack: LabelPack | None,
    settings: Settings,
    watch: Watch = lambda items, count: items,
) -> Run:
    """Detect in every picture.

    Args:
        pack: a vector for each category, in their order; None: the labels baked into the model, which must bear the categories'
            names.
        watch: passes the results through, to show progress.
    Raises:
        InputError: no picture is there, or the baked labels are not the categories.
        EngineError: the bundle has no detector.
    """
    paths = files_of(annotations, folder)
    labels = pack.labels if pack else model.labels
    ids = _ids(annotations, labels, baked=pack is None)
    results = model.detect_each(
        paths,
        pack,
        threshold=settings.threshold,
        nms_iou=settings.nms_iou,
        class_agnostic=settings.class_agnostic,
        max_detections=settings.max_detections,
        batch_size=settings.batch_size,
    )
    rows, failures = [], []
    for image, path, result in zip(annotations.images, paths, watch(results, len(paths)), strict=True):
        if isinstance(result, EdgeClipError):
            failures.append((str(path), str(result)))
            continue
        _check_size(image, path, result.size)
        xywh = np.concatenate([result.boxes[:, :2], result.boxes[:, 2:] - result.boxes[:, :2]], axis=1)
        images = np.full(len(result), image.id, np.int64)
        boxes = Boxes(images, ids[result.label_indices], xywh.astype(np.float64))
        rows.append(Found(boxes, result.scores.astype(np.float64)))
    return Run(_joined(rows), tuple(failures))


def _ids(annotations: Annotations, labels: Sequence[str], *, baked: bool) -> NDArray[np.int64]:
    """The category of each label."""
    if not baked:
        return np.array([category.id for category in annotations.categories], np.int64)
    known = dict(zip(texts_of(annotations, None), annotations.categories, strict=True))
    if missing := [label for label in labels if label not in known]:
        raise InputError(
            f"labels: the model's baked label {missing[0]!r} is no category of {annotations.path}. Use a bundle whose detector takes prompts."
        )
    if lacking := [name for name in known if name not in labels]:
        raise InputError(
            f"labels: the model's baked labels lack {lacking[0]!r}, a category of {annotations.path}. Use a bundle whose detector takes prompts."
        )
    return np.array([known[label].id for label in labels], np.int64)


def _check_size(image: Image, path: Path, size: tuple[int, int]) -> None:
    if size != image.size:
        _log.warning(
            "%s: %d x %d pixels, annotated as %d x %d: its boxes lie elsewhere.",
            path,
            *size[::-1],
            *image.size[::-1],
        )


def _joined(rows: Sequence[Found]) -> Found:
    empty = Found(Boxes(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4))), np.empty(0))
    every = [empty, *rows]
    boxes = Boxes(
        *(np.concatenate([getattr(r.boxes, k) for r in every]) for k in ("images", "categories", "xywh"))
    )
    return Found(boxes, np.concatenate([r.scores for r in every]))


@dataclass(frozen=True)
class Accuracy:
    """How often the right label was the best of all, for boxes that were given."""

    pictures: int
    boxes: int  # named; crowds and boxes without an area are left out
    mean_per_class: float | None  # accuracy of each class that has a box, averaged; None: no box was named
    of_boxes: float | None  # share of all boxes
    groups: dict[str, float | None]  # mean per class, of the split's groups
    per_class: dict[str, tuple[int, float | None]]  # category -> (boxes, accuracy)
    failures: tuple[tuple[str, str], ...]  # (file, reason): their boxes are left out

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = asdict(self)
        found["per_class"] = [
            {"name": name, "boxes": boxes, "accuracy": share}
            for name, (boxes, share) in self.per_class.items()
        ]
        del found["failures"]
        return found


def classify_all(
    model: Model,
    annotations: Annotations,
    folder: Path,
    pack: LabelPack,
    batch_size: int = 8,
    watch: Watch = lambda items, count: items,
) -> Accuracy:
    """Name every box that people drew.

    Args:
        pack: a vector for each category, in their order.
    Raises:
        InputError: no picture is there, or no box.
        EngineError: the bundle knows nothing of regions.
    """
    boxes = annotations.boxes
    good = ~annotations.crowd & (boxes.xywh[:, 2:] > 0).all(axis=1)
    order = np.flatnonzero(good)[np.argsort(boxes.images[good], kind="stable")]
    if len(order) == 0:
        raise InputError(f"{annotations.path}: expected at least one box with an area that is no crowd.")
    rows = dict(_by_picture(boxes.images[order], order))
    chosen = [
        (image, path)
        for image, path in zip(annotations.images, files_of(annotations, folder), strict=True)
        if image.id in rows
    ]
    xyxy = np.concatenate([boxes.xywh[:, :2], boxes.xywh[:, :2] + boxes.xywh[:, 2:]], axis=1)
    results = model.classify_regions_each(
        [path for _, path in chosen],
        [xyxy[rows[image.id]] for image, _ in chosen],
        pack,
        top_k=1,
        batch_size=batch_size,
    )
    columns = {category.id: i for i, category in enumerate(annotations.categories)}
    truth, answers, failures = [], [], []
    for (image, path), result in zip(chosen, watch(results, len(chosen)), strict=True):
        if isinstance(result, EdgeClipError):
            failures.append((str(path), str(result)))
            continue
        truth += [columns[category] for category in boxes.categories[rows[image.id]].tolist()]
        answers += [one.label_index for one in result]
    return _accuracy(annotations, np.array(truth, np.int64), np.array(answers, np.int64), tuple(failures))


def _by_picture(
    images: NDArray[np.int64], order: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    ids, starts = np.unique(images, return_index=True)
    yield from zip(ids.tolist(), np.split(order, starts[1:]), strict=True)


def _accuracy(
    annotations: Annotations,
    truth: NDArray[np.int64],
    answers: NDArray[np.int64],
    failures: tuple[tuple[str, str], ...],
) -> Accuracy:
    count = len(annotations.categories)
    boxes = np.bincount(truth, minlength=count)
    right = np.bincount(truth[truth == answers], minlength=count)
    shares = [r / b if b else None for r, b in zip(right.tolist(), boxes.tolist(), strict=True)]

    def mean(group: str | None) -> float | None:
        parts = [
            share
            for category, share in zip(annotations.categories, shares, strict=True)
            if share is not None and group in (None, category.group)
        ]
        return sum(parts) / len(parts) if parts else None

    return Accuracy(
        pictures=len(annotations.images),
        boxes=len(truth),
        mean_per_class=mean(None),
        of_boxes=float((truth == answers).mean()) if len(truth) else None,
        groups={group: mean(group) for group in annotations.groups},
        per_class=dict(zip(annotations.names, zip(boxes.tolist(), shares, strict=True), strict=True)),
        failures=failures,
    )
