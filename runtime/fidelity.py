"""How far one set of embeddings is from another: pure functions of arrays, in float64.

Cosine alone proves little: under random weights two unrelated pictures can have cosine 0.99. The relative distance puts
the error beside what separates different samples.
Shapes: (N, D) rows, a = the source's, b = the variant's, row i of both from the same sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Fidelity
from edgeclip.errors import CheckFailed

Array = NDArray[Any]
CONSTANT = 1e-4  # rows of different samples closer than this in every column are called constant


def measure(a: Array, b: Array, scores: Callable[[Array], Array] | None = None) -> Fidelity:
    """Every figure of a fidelity report.

    Args:
        a, b: (N, D), N >= 2.
        scores: what turns such rows into (pictures, labels) scores with the other tower's rows, for the top-1 agreement
            of zero-shot labels; None: not measured.
    Raises:
        ValueError: shapes differ or there are fewer than two rows.
        CheckFailed: a value that is not finite, or outputs that do not depend on the input.
    """
    if a.shape != b.shape or a.ndim != 2 or len(a) < 2:
        raise ValueError(f"want two (N, D) with N >= 2, got {a.shape} and {b.shape}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    check_sane(a, "source")
    check_sane(b, "exported graph")
    return figures(a, b, scores)


def figures(
    a: Array, b: Array, scores: Callable[[Array], Array] | None = None, against: str = "source"
) -> Fidelity:
    """`measure` of (N, D) float64 rows that were found sane, one or more."""
    cosines = cosine(a, b)
    return Fidelity(
        samples=len(a),
        max_abs=max_abs(a, b),
        cosine_mean=float(cosines.mean()),
        cosine_p1=float(np.percentile(cosines, 1)),
        cosine_min=float(cosines.min()),
        relative_distance=relative_distance(a, b),
        rank_agreement=rank_agreement(a, b),
        top1_agreement=None if scores is None else top1_agreement(scores(a), scores(b)),
        against=against,
    )


def check_sane(rows: Array, whose: str) -> None:
    """Raise CheckFailed for values that are not finite, and for rows that are all the same."""
    if not np.isfinite(rows).all():
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        raise CheckFailed(
            f"{whose}: {len(bad)} of {len(rows)} embeddings are not finite, the first is sample {bad[0]}"
        )
    if len(rows) > 1 and np.ptp(rows, axis=0).max() < CONSTANT:
        raise CheckFailed(f"{whose}: {len(rows)} different samples give the same embedding")


def max_abs(a: Array, b: Array) -> float:
    """Largest absolute difference."""
    return float(np.abs(a - b).max())


def cosine(a: Array, b: Array) -> Array:
    """(N,) cosine of each pair of rows."""
    cosines: Array = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosines


def relative_distance(a: Array, b: Array) -> float:
    """Mean ||a_i - b_i|| over the median distance between different rows of a; equal rows (a picture given twice) say nothing.

    Where no two differ, over 1.
    """
    distances = _distances(a)[np.triu_indices(len(a), 1)]
    different = distances[distances > CONSTANT / 2]
    return float(np.linalg.norm(a - b, axis=1).mean() / (np.median(different) if len(different) else 1.0))


def rank_agreement(a: Array, b: Array) -> float:
    """Share of samples whose nearest other sample, by cosine, is the same under both."""
    return float((_nearest(a) == _nearest(b)).mean())


def top1_agreement(a: Array, b: Array) -> float:
    """Share of pictures whose best label is the same; a, b: (pictures, labels) scores."""
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())


def _nearest(rows: Array) -> Array:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest: Array = cosines.argmax(axis=1)
    return nearest


def _distances(rows: Array) -> Array:
    squares = (rows**2).sum(axis=1)
    distances: Array = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0))
    return distances
