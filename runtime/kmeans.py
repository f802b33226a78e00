"""Spherical k-means: groups of unit vectors that point alike. Numpy alone, so that training may divide its pairs with it too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]

ROUNDING = 1e-6  # of a cosine of two equal float32 unit vectors of width 1024
ROWS = 4096  # compared with all centres at once


def seed_centres(vectors: Vectors, k: int, random: np.random.Generator) -> Vectors:
    """k of the (N, D) unit rows to start from: each the best of a few, drawn with a chance that grows with the distance from those before.

    One draw each, as in the paper, starts twice in one of six plain clusters in a third of all cases; the best of a few hardly ever.

    Source: Arthur and Vassilvitskii 2007, k-means++, and its greedy form.
    """
    chosen = [int(random.integers(len(vectors)))]
    away = _distances(vectors, chosen)[0]
    draws = 2 + int(np.log(k))
    for _ in range(k - 1):
        total = away.sum(dtype=np.float64)
        if total > 0:
            drawn = random.choice(len(vectors), draws, p=away.astype(np.float64) / total)
        else:  # all that is left are copies of those chosen
            drawn = np.setdiff1d(np.arange(len(vectors)), chosen)[:1]
        left = np.minimum(away, _distances(vectors, drawn))
        best = int(left.sum(axis=1, dtype=np.float64).argmin())
        away = left[best]
        chosen.append(int(drawn[best]))
    return np.asarray(vectors[chosen])


def _distances(vectors: Vectors, chosen: Sequence[int] | Numbers) -> Vectors:
    """(C, N) half the squared distances of all to the chosen; 0 to themselves, whatever rounding says."""
    found: Vectors = np.maximum(1 - vectors[chosen] @ vectors.T, 0)
    found[found < ROUNDING] = 0
    return found


def kmeans(vectors: Vectors, centres: Vectors, *, rounds: int = 50) -> tuple[Vectors, Numbers, float]:
    """Spherical k-means from given centres.

    A cluster that loses all its items gets the item farthest from its own centre.

    Args:
        vectors: (N, D) unit rows.
        centres: (K, D) unit rows to start from.
        rounds: most passes.
    Returns:
        (K, D) unit centres, (N,) labels, and the inertia: the sum over all items of 1 - cosine to their centre.
    Source: Dhillon and Modha 2001, spherical k-means.
    """
    labels, scores = assign(vectors, centres)
    for _ in range(rounds):
        labels = _fill_empty(labels, scores, len(centres))
        centres = means(vectors, labels, len(centres), centres)
        before = labels
        labels, scores = assign(vectors, centres)
        if np.array_equal(labels, before):
            break
    return centres, labels, float((1 - scores.astype(np.float64)).sum())


def assign(vectors: Vectors, centres: Vectors) -> tuple[Numbers, Vectors]:
    """Of each (N, D) row the nearest of (K, D) centres, and the cosine to it."""
    labels, scores = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), ROWS):
        cosines = vectors[start : start + ROWS] @ centres.T
        best = cosines.argmax(axis=1)
        labels[start : start + ROWS] = best
        scores[start : start + ROWS] = np.take_along_axis(cosines, best[:, None], axis=1)[:, 0]
    return labels, scores


def means(vectors: Vectors, labels: Numbers, k: int, before: Vectors) -> Vectors:
    """(K, D) unit means of the rows with each label; the centre before where they cancel out."""
    order = np.argsort(labels, kind="stable")
    sums = np.zeros((k, vectors.shape[1]))
    present = np.flatnonzero(np.bincount(labels, minlength=k))
    starts = np.searchsorted(labels[order], present)
    sums[present] = np.add.reduceat(vectors[order], starts, axis=0, dtype=np.float64)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > 1e-6, sums / np.maximum(lengths, 1e-6), before).astype(np.float32)


def _fill_empty(labels: Numbers, scores: Vectors, k: int) -> Numbers:
    counts = np.bincount(labels, minlength=k)
    if counts.all():
        return labels
    labels = labels.copy()
    farthest = iter(np.argsort(scores, kind="stable"))
    for empty in np.flatnonzero(counts == 0):
        place = next(i for i in farthest if counts[labels[i]] > 1)
        counts[labels[place]] -= 1
        counts[empty] += 1
        labels[place] = empty
    return labels
