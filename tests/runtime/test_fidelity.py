"""Every figure against a value worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgeclip.errors import CheckFailed
from edgeclip.runtime import fidelity
from edgeclip.runtime.fidelity import measure

# four directions in the plane: 0, 30, 90 and 180 degrees
A = np.array([[1, 0], [np.sqrt(3) / 2, 0.5], [0, 1], [-1, 0]])


def test_max_abs() -> None:
    b = A.copy()
    b[2, 1] -= 0.25
    assert fidelity.max_abs(A, b) == 0.25


def test_cosine_does_not_depend_on_length() -> None:
    b = np.array([[2, 0], [0.5, np.sqrt(3) / 2], [0, -3], [0, 1]])
    np.testing.assert_allclose(fidelity.cosine(A, b), [1, np.sqrt(3) / 2, -1, 0], atol=1e-15)


def test_relative_distance() -> None:
    # Distances between different rows: 2 sin(angle / 2) for 30, 90, 180, 60, 150 and 90 degrees; the median of these is
    # sqrt(2). Moving one of four rows by 0.4 gives a mean error of 0.1.
    b = A + np.array([[0.4, 0], [0, 0], [0, 0], [0, 0]])
    assert fidelity.relative_distance(A, b) == pytest.approx(0.1 / np.sqrt(2), abs=1e-15)


def test_samples_given_twice_do_not_count_as_different() -> None:
    a = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1.0]])  # six of ten distances are 0, the others sqrt(2)
    b = a + np.array([[0.1, 0]] + [[0, 0]] * 4)
    assert fidelity.relative_distance(a, b) == pytest.approx(0.02 / np.sqrt(2), abs=1e-15)
    assert measure(a, b).relative_distance == fidelity.relative_distance(a, b)


def test_rank_agreement() -> None:
    # Nearest under A: 0 -> 1, 1 -> 0, 2 -> 1, 3 -> 2. Row 1 turned to 80 degrees: 0 -> 1, 1 -> 2, 2 -> 1, 3 -> 2.
    b = A.copy()
    b[1] = np.cos(np.radians(80)), np.sin(np.radians(80))
    assert fidelity.rank_agreement(A, A) == 1
    assert fidelity.rank_agreement(A, b) == 0.75


def test_top1_agreement() -> None:
    assert fidelity.top1_agreement(
        np.array([[1, 2], [3, 1], [0, 1]]), np.array([[5, 6], [1, 2], [0, 9]])
    ) == pytest.approx(2 / 3)


def test_measure_puts_each_figure_in_its_place() -> None:
    b = A + np.array([[0, 0], [0, 0], [0, 0], [0, 0.1]])
    found = measure(A, b, lambda rows: rows @ np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.05]]).T)
    assert found.samples == 4
    assert found.max_abs == pytest.approx(0.1)
    cosines = [1, 1, 1, 1 / np.sqrt(1.01)]
    assert found.cosine_mean == pytest.approx(np.mean(cosines))
    assert found.cosine_min == pytest.approx(cosines[3])
    assert found.cosine_p1 == pytest.approx(
        cosines[3] + 0.03 * (1 - cosines[3])
    )  # 3 % of the way to the next
    assert found.relative_distance == pytest.approx(0.025 / np.sqrt(2))
    assert found.top1_agreement == 1
    assert measure(A, b).top1_agreement is None


def test_float32_rows_are_measured_in_float64() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 512)).astype(np.float32)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    assert measure(a, a.copy()).cosine_min == pytest.approx(1, abs=1e-15)
    assert measure(a, a + np.float32(1e-4)).max_abs == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            np.array([[1, 0], [np.nan, 0], [0, 1], [np.inf, 0]]),
            "2 of 4 embeddings are not finite, the first is sample 1",
        ),
        (np.ones((4, 2)), "4 different samples give the same embedding"),
    ],
)
def test_unfit_rows_fail(bad: np.ndarray, message: str) -> None:
    with pytest.raises(CheckFailed, match=f"exported graph: {message}"):
        measure(A, bad)
    with pytest.raises(CheckFailed, match=f"source: {message}"):
        measure(bad, A)


def test_wrong_shapes_are_a_bug_of_ours() -> None:
    with pytest.raises(ValueError, match="want two"):
        measure(A, A[:3])
    with pytest.raises(ValueError, match="want two"):
        measure(A[:1], A[:1])
