"""Scores after compression: scale and bias fitted again on the user's pictures, kept where the held-out half says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Manifest, Scores
from edgeclip.errors import InputError
from edgeclip.evaluate.calibration import calibration_error, fit_scores
from edgeclip.export.compress.figures import Half, Judge
from edgeclip.runtime.results import to_scores

Array = NDArray[Any]


@dataclass(frozen=True)
class Refit:
    """Scores of one compressed image tower, on the held-out half."""

    against: Literal["labels", "fp32"]  # what is right: the folders' labels, or fp32's scores
    float_error: float  # of fp32 with the model's own scale; 0 against fp32
    error_before: float  # of the compressed tower with the model's own scale
    error_after: float  # with the fitted one
    scores: Scores  # the fitted scale and bias
    kept: bool  # it is better on the held-out half


def refit_scores(judge: Judge, rows: Array, manifest: Manifest) -> Refit | str:
    """Fit on the calibration half, measure on the held-out half.

    Against labels the error is the expected calibration error, against fp32 the mean difference to fp32's score of the label
    that fp32 calls best.

    Args:
        rows: (M, D) of the compressed tower, both halves.
    Returns:
        what was found, or why nothing was fitted.
    """
    if judge.cosines is None:
        return "no labels"
    own, activation = manifest.scores_of(None), manifest.activation

    def scored(which: Array, half: Half, scores: Scores = own) -> Array:
        assert judge.cosines is not None
        cosines = judge.cosines(which, half)
        return to_scores(cosines.astype(np.float32), scores.logit_scale, scores.logit_bias, activation)

    def error(found: Array) -> float:
        if judge.truth is not None:
            return calibration_error(found, judge.truth["held_out"], activation=activation)
        teacher = scored(judge.reference, "held_out")
        best = np.arange(len(teacher)), teacher.argmax(axis=1)
        return float(np.abs(found[best] - teacher[best]).mean())

    teacher = scored(judge.reference, "calibration")
    targets = judge.truth["calibration"] if judge.truth is not None else teacher
    try:
        fitted = fit_scores(judge.cosines(rows, "calibration"), targets, own, activation)
    except InputError as reason:
        return str(reason)
    before, after = error(scored(rows, "held_out")), error(scored(rows, "held_out", fitted))
    return Refit(
        against="fp32" if judge.truth is None else "labels",
        float_error=error(scored(judge.reference, "held_out")),
        error_before=before,
        error_after=after,
        scores=fitted,
        kept=after < before,
    )
