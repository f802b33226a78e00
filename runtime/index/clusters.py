"""Groups of like pictures: spherical k-means, or everything that a chain of near neighbours joins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.components import ROUNDING, Numbers, Progress, Rows, Vectors, collect, join_near
from edgeclip.runtime.index.types import Hit

if TYPE_CHECKING:
    from edgeclip.runtime.model import Model

LEARN_FROM = 131_072  # vectors that k-means moves its centres by: 256 MB at width 512. All are then given to their nearest
ROWS = 4096  # compared with all centres at once


@dataclass(frozen=True)
class Cluster:
    """Items that lie together."""

    number: int  # 0 is the largest
    size: int
    nearest: Hit  # the item nearest to the centre, score: its cosine to it
    tightness: float  # mean cosine of its items to the centre
    label: str | None = None  # the text that fits the centre best
    label_score: float | None = None  # cosine of that text and the centre

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        named = (
            {}
            if self.label is None
            else {"label": self.label, "label_score": round(self.label_score or 0, 6)}
        )
        return {
            "cluster": self.number, "size": self.size, **named, "tightness": round(self.tightness, 6),
            "nearest": self.nearest.to_dict(),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of an index."""

    clusters: tuple[Cluster, ...]  # by number
    centres: Vectors  # (K, D) unit rows
    ids: Numbers  # (N,) ascending
    labels: Numbers  # (N,) number of each item's cluster, -1: in none of the size that was asked for
    scores: Vectors  # (N,) cosine to the centre, 0 where in none
    keys: tuple[str, ...]  # (N,)


def cluster(
    rows: Rows, k: int, *, seed: int = 0, rounds: int = 50, progress: Progress | None = None
) -> Clusters:
    """Divide an index into k clusters by spherical k-means; the same each time for one seed.

    Args:
        rounds: most passes; it ends before when no item changes its cluster.
    Raises:
        InputError: k below 1 or above the number of items.
    """
    rows = rows.pinned()
    ids = rows.ids_where(None)
    if not len(ids):
        raise InputError("k: the index holds no items to put together.")
    if not 1 <= k <= len(ids):
        raise InputError(f"k: expected 1 to {len(ids)}, the number of items, got {k}.")
    random = np.random.default_rng(seed)
    some = ids if len(ids) <= LEARN_FROM else np.sort(random.choice(ids, LEARN_FROM, replace=False))
    vectors, _ = collect(rows, some)
    centres, labels, _ = kmeans(vectors, seed_centres(vectors, k, random), rounds=rounds)
    if len(some) < len(ids):
        labels = np.concatenate([assign(part, centres)[0] for _, part, _ in rows.batches()])
    return _describe(rows, ids, labels, centres, progress)


def cluster_by_threshold(
    rows: Rows, threshold: float, *, least: int = 2, exact: bool = False, progress: Progress | None = None
) -> Clusters:
    """Single linkage: a cluster is what a chain of cosines >= threshold joins.

    Args:
        least: items that a cluster needs; those in smaller ones get the label -1.
        exact: compare every vector, where an index would walk a graph.
    Raises:
        InputError: no cosine, or least below 1.
    """
    if least < 1:
        raise InputError(f"least: expected 1 or more, got {least}.")
    rows = rows.pinned()
    found = join_near(rows, threshold, exact=exact, progress=progress)
    labels = np.full(len(found.ids), -1, np.int64)
    groups = found.groups(least)
    for number, group in enumerate(groups):
        labels[group] = number
    centres: Vectors | None = None
    for ids, vectors, _ in rows.batches():
        if centres is None:
            centres = np.zeros((len(groups), vectors.shape[1]), np.float32)
        own = labels[np.searchsorted(found.ids, ids)]
        np.add.at(centres, own[own >= 0], vectors[own >= 0])
    return _describe(
        rows, found.ids, labels, _unit(centres if centres is not None else np.empty((0, 0), np.float32))
    )


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


def _unit(rows: NDArray[Any]) -> Vectors:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def _describe(
    rows: Rows, ids: Numbers, labels: Numbers, centres: Vectors, progress: Progress | None = None
) -> Clusters:
    """Numbers by size, and of each cluster the item nearest to its centre."""
    sizes = np.bincount(labels[labels >= 0], minlength=len(centres))
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    number = np.full(len(centres) + 1, -1, np.int64)  # the last one: of -1
    number[order] = np.arange(len(order))
    labels, centres = number[labels], centres[order]
    scores, keys = np.zeros(len(ids), np.float32), list[str]()
    nearest: dict[int, Hit] = {}
    for numbers, vectors, items in rows.batches():
        places = np.searchsorted(ids, numbers)
        own = labels[places]
        if len(centres):
            scores[places] = np.where(own >= 0, np.einsum("nd,nd->n", vectors, centres[own]), 0)
        keys += [item.key for item in items]
        best = np.lexsort((-scores[places], own))  # by cluster, the nearest first
        for i in best[np.flatnonzero(np.diff(own[best], prepend=-2))].tolist():
            which, score = int(own[i]), float(scores[places[i]])
            if which >= 0 and (which not in nearest or score > nearest[which].score):
                nearest[which] = Hit(items[i].key, score, int(numbers[i]), items[i].record)
        if progress:
            progress(len(numbers))
    inside = labels >= 0
    sums = np.bincount(labels[inside], scores[inside], minlength=len(order))
    found = [
        Cluster(i, int(sizes[old]), nearest[i], float(sums[i] / sizes[old]))
        for i, old in enumerate(order.tolist())
    ]
    return Clusters(tuple(found), centres, ids, labels, scores, tuple(keys))


def name_clusters(
    found: Clusters, model: Model, texts: Sequence[str], templates: Sequence[str] | None = None
) -> Clusters:
    """Give each cluster the text that fits its centre best.

    Args:
        model: the index's own.
        texts: to choose from.
        templates: prompts with a {} for the text; None: the bundle's own.
    Raises:
        InputError: a text or template that cannot be used.
    """
    pack = model.make_labels(texts, templates)
    best, scores = assign(found.centres, pack.vectors)
    named = [
        replace(one, label=pack.labels[i], label_score=float(score))
        for one, i, score in zip(found.clusters, best.tolist(), scores.tolist(), strict=True)
    ]
    return replace(found, clusters=tuple(named))
