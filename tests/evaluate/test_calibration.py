"""Calibration against references written another way: loops, grids, and torch's optimiser."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from edgeclip.bundle import Scores
from edgeclip.errors import InputError
from edgeclip.evaluate import calibration
from edgeclip.evaluate.calibration import calibration_error, fit_scores, fit_thresholds
from tests.mutants import broken

Array = NDArray[Any]
START = Scores(50.0, -3.0)
PICTURES, LABELS = 60, 5


def cosines(seed: int = 0) -> tuple[Array, Array]:
    """(N, P) cosines as a model gives them, and labels drawn from a softmax of them at scale 20: no scale fits perfectly."""
    random = np.random.default_rng(seed)
    found = random.normal(0.2, 0.08, (PICTURES, LABELS))
    chances = F.softmax(torch.from_numpy(20 * found), dim=1).numpy()
    return found, np.array([random.choice(LABELS, p=row) for row in chances])


def by_torch(values: Array, hot: Array, activation: str) -> tuple[float, float]:
    """Scale and bias of the smallest cross entropy, by LBFGS in float64."""
    x, y = torch.from_numpy(values), torch.from_numpy(hot)
    pair = torch.tensor([10.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [pair], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = pair[0] * x + pair[1]
        found = (
            F.cross_entropy(logits, y)
            if activation == "softmax"
            else F.binary_cross_entropy_with_logits(logits, y)
        )
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    scale, bias = pair.detach().tolist()
    return scale, bias


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["labels", "teacher"])
def test_scores_are_what_torch_finds(activation: Any, kind: str) -> None:
    values, labels = cosines()
    hot = np.eye(LABELS)[labels]
    targets: Array = labels
    if kind == "teacher":
        logits = torch.from_numpy(30 * values + np.random.default_rng(1).normal(0, 0.3, values.shape))
        targets = hot = (
            F.softmax(logits, 1) if activation == "softmax" else torch.sigmoid(logits - 6)
        ).numpy()
    found = fit_scores(values, targets, START, activation)
    scale, bias = by_torch(values, hot, activation)
    assert found.logit_scale == pytest.approx(scale, rel=1e-5)
    assert found.logit_bias == (-3.0 if activation == "softmax" else pytest.approx(bias, rel=1e-5))
    again = fit_scores(values, targets, Scores(1.0, 7.0), activation)
    assert again.logit_scale == pytest.approx(found.logit_scale, rel=1e-9), "the start must not matter"


def test_a_scale_that_is_known_is_found_again() -> None:
    values, _ = cosines()
    for scale, bias in ((7.0, 0.0), (60.0, -14.0), (103.0, -16.0)):
        logits = torch.from_numpy(scale * values + bias)
        assert fit_scores(
            values, F.softmax(logits, 1).numpy(), START, "softmax"
        ).logit_scale == pytest.approx(scale)
        found = fit_scores(values, torch.sigmoid(logits).numpy(), START, "sigmoid")
        assert (found.logit_scale, found.logit_bias) == (pytest.approx(scale), pytest.approx(bias, abs=1e-6))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_fitting_lowers_the_calibration_error(activation: Any) -> None:
    values, labels = cosines()
    fitted = fit_scores(values, labels, START, activation)

    def error(scores: Scores) -> float:
        logits = torch.from_numpy(scores.logit_scale * values + scores.logit_bias)
        shares = F.softmax(logits, 1) if activation == "softmax" else torch.sigmoid(logits)
        return calibration_error(shares.numpy(), labels, activation=activation)

    assert error(fitted) < 0.12 < error(START)


@pytest.mark.parametrize(("activation", "end"), [("softmax", 100.0), ("sigmoid", 1000.0)])
def test_a_scale_that_runs_away_is_held_and_said(
    activation: Any, end: float, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.arange(20) % 4
    perfect = np.eye(4)[labels] * 0.004 + 0.2  # told apart without a mistake, by a hair
    with caplog.at_level(logging.WARNING):
        assert fit_scores(perfect, labels, START, activation).logit_scale == end
        assert "the scale ran to its end" in caplog.text
        assert "told apart too well" in caplog.text
        assert fit_scores(-perfect, labels, START, activation).logit_scale == calibration.LOWEST_SCALE
        assert "do not follow the cosines" in caplog.text
    constant = fit_scores(np.full((20, 4), 0.3), labels, START, "sigmoid")
    assert np.isfinite([constant.logit_scale, constant.logit_bias]).all()
    assert constant.logit_scale * 0.3 + constant.logit_bias == pytest.approx(np.log(1 / 3)), (
        "a quarter is right"
    )


def by_loops(probabilities: Array, hot: Array, bins: int, softmax: bool) -> float:
    pairs = []
    for row, right in zip(probabilities, hot, strict=True):
        chosen = [max(range(len(row)), key=lambda i: row[i])] if softmax else range(len(row))
        pairs += [(row[i], right[i]) for i in chosen]
    total = 0.0
    for k in range(bins):
        inside = [p for p in pairs if k / bins < p[0] <= (k + 1) / bins or (k == 0 and p[0] == 0)]
        if inside:
            score, share = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            total += len(inside) / len(pairs) * abs(share - score)
    return total


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_calibration_error_is_what_loops_give(activation: Any) -> None:
    values, labels = cosines(3)
    shares = F.softmax(torch.from_numpy(15 * values), dim=1).numpy()
    shares[0, 0], shares[1] = 0.0, [1, 0, 0, 0, 0]
    hot = np.eye(LABELS)[labels]
    for bins in (1, 10, 15):
        want = by_loops(shares, hot, bins, activation == "softmax")
        assert calibration_error(shares, labels, bins, activation) == pytest.approx(want, abs=1e-12)
    assert calibration_error(shares, hot, activation=activation) == calibration_error(
        shares, labels, activation=activation
    )
    # by hand: two pictures at 0.8, one right (gap 0.3), one at 0.6 and right (0.4)
    hand = np.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])
    assert calibration_error(hand, np.array([0, 1, 0])) == pytest.approx((2 * 0.3 + 0.4) / 3)


def f1(scores: Array, right: Array, threshold: float) -> float:
    answers = scores >= threshold
    return float(2 * (answers & right).sum() / (answers.sum() + right.sum()))


def test_thresholds_are_the_best_of_all() -> None:
    values, labels = cosines(5)
    shares = F.softmax(torch.from_numpy(20 * values), dim=1).numpy().round(2)  # with equal scores
    right = np.eye(LABELS, dtype=bool)[labels]
    found = fit_thresholds(shares, labels, prior=0)
    np.testing.assert_array_equal(found, fit_thresholds(shares, right, prior=0))
    for column, hits, threshold in zip(shares.T, right.T, found, strict=True):
        assert f1(column, hits, threshold) == max(f1(column, hits, t) for t in np.unique(column))
        assert np.abs(column - threshold).min() > 1e-6, "no score lies on its threshold"
    precise = fit_thresholds(shares, labels, prior=0, precision=0.75)
    for column, hits, threshold in zip(shares.T, right.T, precise, strict=True):
        good = [t for t in np.unique(column) if hits[column >= t].mean() >= 0.75]
        if good:
            np.testing.assert_array_equal(column >= threshold, column >= min(good))
        else:
            assert threshold == pytest.approx(1)


def test_few_pictures_of_a_label_draw_its_threshold_to_the_pooled_one() -> None:
    random = np.random.default_rng(2)
    labels = np.array([0] * 40 + [1] * 2)
    scores = random.uniform(0, 0.3, (42, 3))
    scores[np.arange(42), labels] = np.where(labels == 0, random.uniform(0.6, 0.9, 42), 0.35)
    own, pooled = fit_thresholds(scores, labels, prior=0), fit_thresholds(scores, labels, prior=1e9)
    found = fit_thresholds(scores, labels)
    assert pooled == pytest.approx(np.full(3, pooled[0]))
    assert found[2] == pytest.approx(pooled[0]), "a label without pictures has the pooled one"

    def odds(x: Any) -> Any:
        return np.log(x / (1 - x))

    for label, weight in ((0, 40 / 50), (1, 2 / 12)):
        assert odds(found[label]) == pytest.approx(weight * odds(own[label]) + (1 - weight) * odds(pooled[0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, t: calibration_error(v + 2, t), "probabilities: expected values in 0-1. Pass scores, not logits"),
        (lambda v, t: calibration_error(v, t[1:]), r"targets: expected 60 label numbers, got \(59,\)"),
        (lambda v, t: calibration_error(v[:0], t[:0]), r"expected \(pictures, labels\) values, got \(0, 5\)"),
        (lambda v, t: fit_scores(v, t + 1, START, "softmax"), "expected label numbers 0 to 4, got 1 to 5"),
        (lambda v, t: fit_scores(v * np.nan, t, START, "softmax"), "a value is not finite"),
        (lambda v, t: fit_scores(v[:9], t[:9], START, "softmax"), "expected at least 10 pictures, got 9"),
        (lambda v, t: fit_scores(v[:1], v[:1], START, "softmax"), "expected at least 2 pictures, got 1"),
        (lambda v, t: fit_scores(v, t * 0, START, "sigmoid"), "all pictures have the same label"),
        (lambda v, t: fit_scores(v[:, :1], t * 0, START, "sigmoid"), "expected at least two labels, got 1"),
        (lambda v, t: fit_scores(v, v * 0, START, "softmax"), "picture 0 has no right label"),
        (lambda v, t: fit_scores(v, v + 9, START, "softmax"), r"targets: expected \(60, 5\) values in 0-1"),
        (lambda v, t: fit_thresholds(v[:9], t[:9]), "thresholds: expected at least 10 pictures, got 9"),
    ],
)  # fmt: skip
def test_refusals(call: Any, message: str) -> None:
    values, labels = cosines()
    with pytest.raises(InputError, match=message):
        call(np.clip(values, 0, 1), labels)


@pytest.mark.parametrize(
    ("name", "old", "new", "test"),
    [
        ("_softmax_slope", "- mean**2", "", lambda: test_scores_are_what_torch_finds("softmax", "labels")),
        ("_softmax_slope", "(hot * cosines)", "cosines", lambda: test_scores_are_what_torch_finds("softmax", "labels")),
        ("_sigmoid_slope", "shares - hot", "hot - shares", lambda: test_scores_are_what_torch_finds("sigmoid", "labels")),
        ("_sigmoid_bias_slope", "shares - hot", "shares - 0.5", lambda: test_scores_are_what_torch_finds("sigmoid", "teacher")),
        ("_threshold", "scores[1:] < scores[:-1]", "scores[1:] < 2", test_thresholds_are_the_best_of_all),
        ("_threshold", "answered + right.sum()", "answered", test_thresholds_are_the_best_of_all),
    ],
)  # fmt: skip
def test_planted_faults_are_found(
    name: str, old: str, new: str, test: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, name, broken(getattr(calibration, name), old, new))
    with pytest.raises(AssertionError):
        test()
