"""Scores that stay meaningful: how far they are from being right, and scale, bias and thresholds fitted to pictures.

Everything is float64 and deterministic. Scale and bias are found as roots of rising functions (the losses are convex), each between
two ends that are tried first: nothing can run away, and an end that is reached is said in a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Scores
from edgeclip.errors import InputError

Array = NDArray[Any]
Activation = Literal["softmax", "sigmoid"]

MIN_PICTURES = 10  # with one label each; soft targets say more a picture, and 2 will do
LOWEST_SCALE = 0.01
# CLIP itself is trained with its scale held below 100; SigLIP's reaches 118 and has no limit.
HIGHEST_SCALE = {"softmax": 100.0, "sigmoid": 1000.0}
HIGHEST_BIAS = 2000.0  # the highest sigmoid scale and its logits in both directions
# What a label's own threshold weighs: as many positive pictures against so many of the pooled threshold.
PRIOR_PICTURES = 10.0

log = logging.getLogger(__name__)


def calibration_error(
    probabilities: Array, labels: Array, bins: int = 15, activation: Activation = "softmax"
) -> float:
    """How far scores are from the share of times that they are right: expected calibration error, 0 to 1.

    Args:
        probabilities: (N, P) scores, 0-1.
        labels: (N,) the right label of each picture, or (N, P) of 0 and 1 where several or none may be right (sigmoid).
        bins: of equal width.
        activation: "softmax": the best score of each picture counts; "sigmoid": every pair of picture and label.
    Returns:
        Mean over the bins of |share that is right - mean score|, weighted by how many fall into each.
    Raises:
        InputError: shapes or label numbers that do not fit, scores outside 0-1, none at all.
    Source: Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    scores, hot = _checked(probabilities, labels)
    if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()):
        raise InputError("probabilities: expected values in 0-1. Pass scores, not logits.")
    if activation == "softmax":
        rows, best = np.arange(len(scores)), scores.argmax(axis=1)
        scores, hot = scores[rows, best], hot[rows, best]
    scores, right = scores.ravel(), hot.ravel()
    which = np.clip(np.ceil(scores * bins).astype(int) - 1, 0, bins - 1)  # (low, high], and 0 in the first
    gaps = np.bincount(which, weights=right - scores, minlength=bins)
    return float(np.abs(gaps).sum() / len(scores))


def fit_scores(cosines: Array, targets: Array, start: Scores, activation: Activation) -> Scores:
    """Scale (and for a sigmoid bias) that make scores likeliest, e.g. after compression moved the cosines.

    Args:
        cosines: (N, P) of pictures and labels.
        targets: (N,) the right label of each picture, or (N, P) in 0-1: what a teacher gives, or several right ones.
        start: kept where nothing is fitted: the bias of a softmax, which changes no score.
        activation: of the family.
    Raises:
        InputError: shapes that do not fit, values that are not finite, too few pictures, or one label only.
    """
    cosines, hot = _checked(cosines, targets)
    _check_enough(cosines, np.asarray(targets), hot)
    high = max(HIGHEST_SCALE[activation], start.logit_scale)
    if np.asarray(targets).ndim == 2:  # a teacher at 100 may well be followed at 102, and it is no flight
        high *= 2
    if activation == "softmax":
        hot = hot / hot.sum(axis=1, keepdims=True)
        scale = _rising_root(lambda s: _softmax_slope(s, cosines, hot), LOWEST_SCALE, high, start.logit_scale)
        fitted = Scores(scale, start.logit_bias)
    else:
        bias = [start.logit_bias]  # of the last scale: the next one's search starts there

        def slope(scale: float) -> tuple[float, float]:
            bias[0] = _rising_root(
                lambda b: _sigmoid_bias_slope(scale, b, cosines, hot), -HIGHEST_BIAS, HIGHEST_BIAS, bias[0]
            )
            return _sigmoid_slope(scale, bias[0], cosines, hot)

        scale = _rising_root(slope, LOWEST_SCALE, high, start.logit_scale)
        slope(scale)
        fitted = Scores(scale, bias[0])
    if fitted.logit_scale in (LOWEST_SCALE, high):
        why = (
            "the labels do not follow the cosines"
            if fitted.logit_scale == LOWEST_SCALE
            else "they are told apart too well"
        )
        log.warning(
            "fitted on %d pictures, the scale ran to its end, %g: %s", len(cosines), fitted.logit_scale, why
        )
    return fitted


def fit_thresholds(
    scores: Array, labels: Array, *, precision: float | None = None, prior: float = PRIOR_PICTURES
) -> NDArray[np.float64]:
    """For each label the score from which on it is an answer.

    A label's own best threshold is drawn towards the pooled one of all labels, on the scale of log-odds: with n pictures
    of it in hand its own weighs n / (n + prior). A label without pictures gets the pooled one.

    Args:
        scores: (N, P), 0-1.
        labels: (N,) the right label of each picture, or (N, P) of 0 and 1.
        precision: take the lowest threshold whose answers are right so often, 0-1; 1 where none is. None: the best F1.
        prior: pictures that the pooled threshold counts for; 0: every label by itself.
    Returns:
        (P,) thresholds, 0-1, between two scores that occurred wherever that is possible.
    Raises:
        InputError: shapes that do not fit, or fewer than 10 pictures.
    """
    scores, hot = _checked(scores, labels)
    if len(scores) < MIN_PICTURES:
        raise InputError(
            f"thresholds: expected at least {MIN_PICTURES} pictures, got {len(scores)}. Add pictures."
        )
    pooled = _logit(_threshold(scores.ravel(), hot.ravel(), precision))
    found = np.full(scores.shape[1], pooled)
    counts = hot.sum(axis=0)
    for label in np.flatnonzero(counts):
        own = _logit(_threshold(scores[:, label], hot[:, label], precision))
        found[label] = (counts[label] * own + prior * pooled) / (counts[label] + prior)
    return np.asarray(1 / (1 + np.exp(-found)))


def _checked(values: Array, targets: Array) -> tuple[Array, Array]:
    """-> (N, P) float64 values and targets."""
    values, targets = np.asarray(values, np.float64), np.asarray(targets)
    if values.ndim != 2 or not values.size:
        raise InputError(f"expected (pictures, labels) values, got {values.shape}.")
    if not np.isfinite(values).all():
        raise InputError("a value is not finite. Run `edgeclip verify` on the bundle.")
    if targets.ndim == 2:
        hot = targets.astype(np.float64)
        if hot.shape != values.shape or not ((hot >= 0) & (hot <= 1)).all():
            raise InputError(f"targets: expected {values.shape} values in 0-1, got {hot.shape}.")
        return values, hot
    number, labels = values.shape
    if targets.shape != (number,) or not np.issubdtype(targets.dtype, np.integer):
        raise InputError(f"targets: expected {number} label numbers, got {targets.shape} {targets.dtype}.")
    if not ((targets >= 0) & (targets < labels)).all():
        raise InputError(
            f"targets: expected label numbers 0 to {labels - 1}, got {targets.min()} to {targets.max()}."
        )
    return values, np.eye(labels)[targets]


def _check_enough(cosines: Array, targets: Array, hot: Array) -> None:
    wanted = MIN_PICTURES if targets.ndim == 1 else 2
    if len(cosines) < wanted:
        raise InputError(
            f"fitting scores: expected at least {wanted} pictures, got {len(cosines)}. Add pictures."
        )
    if cosines.shape[1] < 2:
        raise InputError("fitting scores: expected at least two labels, got 1. Add a label.")
    if targets.ndim == 1 and len(np.unique(targets)) < 2:
        raise InputError("fitting scores: all pictures have the same label. Add pictures of another one.")
    if not hot.sum(axis=1).all():
        raise InputError(f"targets: picture {int(hot.sum(axis=1).argmin())} has no right label.")


def _softmax_slope(scale: float, cosines: Array, hot: Array) -> tuple[float, float]:
    """First and second derivative by the scale of the mean cross entropy, in nats."""
    powers = np.exp(scale * (cosines - cosines.max(axis=1, keepdims=True)))
    shares = powers / powers.sum(axis=1, keepdims=True)
    mean = (shares * cosines).sum(axis=1)
    spread = (shares * cosines**2).sum(axis=1) - mean**2
    return float((mean - (hot * cosines).sum(axis=1)).mean()), float(spread.mean())


def _sigmoid(scale: float, bias: float, cosines: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh((scale * cosines + bias) / 2)))


def _sigmoid_bias_slope(scale: float, bias: float, cosines: Array, hot: Array) -> tuple[float, float]:
    """First and second derivative by the bias of the mean binary cross entropy."""
    shares = _sigmoid(scale, bias, cosines)
    return float((shares - hot).mean()), float((shares * (1 - shares)).mean())


def _sigmoid_slope(scale: float, bias: float, cosines: Array, hot: Array) -> tuple[float, float]:
    """The same by the scale, where the bias follows to stay the best one."""
    shares = _sigmoid(scale, bias, cosines)
    weights = shares * (1 - shares)
    centre = (weights * cosines).sum() / max(float(weights.sum()), 1e-300)
    return float(((shares - hot) * cosines).mean()), float((weights * (cosines - centre) ** 2).mean())


def _rising_root(at: Callable[[float], tuple[float, float]], low: float, high: float, start: float) -> float:
    """Where a rising function is 0, or the end that it does not reach. Newton's steps, halved where one leaves the bracket.

    Args:
        at: value and derivative.
    """
    if at(low)[0] >= 0:
        return low
    if at(high)[0] <= 0:
        return high
    x = min(max(start, low), high)
    for _ in range(200):
        value, slope = at(x)
        if value == 0:
            return x
        low, high = (x, high) if value < 0 else (low, x)
        step = x - value / slope if slope > 0 else np.inf
        x, before = (step if low < step < high else (low + high) / 2), x
        if abs(x - before) <= 1e-12 * max(1.0, abs(x)):
            return x
    return x


def _threshold(scores: Array, right: Array, precision: float | None) -> float:
    """The threshold for one list of scores: of the best F1 (the highest of equals), or the lowest that is precise enough."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    last = np.append(scores[1:] < scores[:-1], True)  # equal scores are answers together
    answered = np.arange(1, len(scores) + 1)[last]
    between = (scores + np.append(scores[1:], 0)) / 2
    between, hits = between[last], hits[last]
    if precision is None:
        return float(between[np.argmax(2 * hits / (answered + right.sum()))])
    good = np.flatnonzero(hits >= precision * answered)
    return float(between[good[-1]]) if len(good) else 1.0


def _logit(share: float) -> float:
    share = min(max(share, 1e-12), 1 - 1e-12)
    return float(np.log(share) - np.log1p(-share))
