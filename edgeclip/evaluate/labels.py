"""Thresholds of a label pack from the user's own pictures, with figures from pictures that they were not fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.evaluate.calibration import MIN_PICTURES, Activation, calibration_error, fit_thresholds
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.model import Model
from edgeclip.runtime.results import rank

Array = NDArray[Any]


@dataclass(frozen=True)
class LabelFigures:
    """One label on the pictures that were held out."""

    label: str
    threshold: float
    fitted_on: int  # pictures of it; 0: the threshold is the pooled one of all labels
    pictures: int  # of it, held out
    answered: int  # held-out pictures that got this label
    precision: float | None  # share of those that are of it; None: none was answered
    recall: float | None  # share of its pictures that got it; None: there are none


@dataclass(frozen=True)
class Fit:
    """A pack with thresholds, and what they give."""

    pack: LabelPack
    figures: tuple[LabelFigures, ...]
    answered: float  # share of held-out pictures that got a label at all
    right: float  # share of held-out pictures that got the right one
    right_before: float  # the same without thresholds
    calibration_error: float  # of the scores themselves, on the held-out pictures

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the vectors."""
        return {
            "labels": [asdict(one) for one in self.figures],
            "answered": self.answered,
            "right": self.right,
            "right_before": self.right_before,
            "calibration_error": self.calibration_error,
        }


def label_folders(labels: Sequence[str], folder: Path) -> dict[int, Path]:
    """Label number -> its folder of pictures: of the label's name, or with _ for what a file system does not like.

    Raises:
        InputError: no such folder, none inside, or one that is no label.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Expected one with a folder of pictures for each label.")
    loosely = [_plain(label) for label in labels]
    numbers = {name: i for i, name in enumerate(loosely) if loosely.count(name) == 1}
    numbers |= {label: i for i, label in enumerate(labels)}
    found: dict[int, Path] = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        number = numbers.get(inner.name, numbers.get(_plain(inner.name)))
        if number is None:
            near = get_close_matches(inner.name, numbers, 1)
            hint = f"Did you mean {labels[numbers[near[0]]]!r}?" if near else "Rename or move it."
            raise InputError(f"{inner}: the pack has no label {inner.name!r}. {hint}")
        if number in found:
            raise InputError(
                f"{inner}: {labels[number]!r} has another folder, {found[number].name}. Join the two."
            )
        found[number] = inner
    if not found:
        raise InputError(
            f"{folder}: holds no folders. Expected a folder of pictures for each label, named after it."
        )
    return found


def fit_pack(
    pack: LabelPack, scores: Array, labels: Array, activation: Activation, *, precision: float | None = None
) -> Fit:
    """Fit thresholds on every second picture of each label, and measure on the others.

    Args:
        scores: (N, P) of all pictures, 0-1.
        labels: (N,) the right label of each.
        activation: that made the scores.
        precision: of the answers to aim at; None: the best balance with recall.
    Raises:
        InputError: fewer than 20 pictures.
    """
    order = np.zeros(len(labels), int)  # of a picture among those of its label
    for label in np.unique(labels):
        order[labels == label] = np.arange((labels == label).sum())
    ours, held = order % 2 == 0, order % 2 == 1
    if min(ours.sum(), held.sum()) < MIN_PICTURES:
        raise InputError(
            f"thresholds: expected at least {MIN_PICTURES} pictures to fit on and {MIN_PICTURES} to check, "
            f"got {ours.sum()} and {held.sum()}. Add pictures."
        )
    fitted = pack.with_thresholds(list(fit_thresholds(scores[ours], labels[ours], precision=precision)))
    answers = np.array([rank(row, pack.labels, None, fitted.thresholds).label_index for row in scores[held]])
    figures = _figures(fitted, answers, labels[held], np.bincount(labels[ours], minlength=len(pack.labels)))
    right = labels[held]
    return Fit(
        fitted,
        figures,
        answered=float((answers >= 0).mean()),
        right=float((answers == right).mean()),
        right_before=float((scores[held].argmax(axis=1) == right).mean()),
        calibration_error=calibration_error(scores[held], right, activation=activation),
    )


def full_scores(model: Model, pack: LabelPack, images: Sequence[Path]) -> Iterator[Array | InputError]:
    """(P,) scores of each picture in the pack's order, or the error in its place."""
    for result in model.classify_each(images, pack, threshold=0):
        if isinstance(result, InputError):
            yield result
        else:
            row = np.empty(len(pack.labels))
            row[list(result.label_indices)] = result.scores
            yield row


def _figures(pack: LabelPack, answers: Array, right: Array, fitted_on: Array) -> tuple[LabelFigures, ...]:
    figures = []
    for i, (label, threshold) in enumerate(zip(pack.labels, pack.thresholds or (), strict=True)):
        hits, answered, pictures = (
            ((answers == i) & (right == i)).sum(),
            (answers == i).sum(),
            (right == i).sum(),
        )
        figures.append(
            LabelFigures(
                label,
                threshold,
                int(fitted_on[i]),
                int(pictures),
                int(answered),
                float(hits / answered) if answered else None,
                float(hits / pictures) if pictures else None,
            )
        )
    return tuple(figures)


def _plain(name: str) -> str:
    """What a label and its folder share."""
    return "".join(letter if letter.isalnum() else "_" for letter in name).casefold()
