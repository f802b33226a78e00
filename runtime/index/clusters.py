"""Groups of like pictures: spherical k-means, or everything that a chain of near neighbours joins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.components import Numbers, Progress, Rows, Vectors, collect, join_near
from edgeclip.runtime.index.types import Hit
from edgeclip.runtime.kmeans import assign, kmeans, seed_centres

if TYPE_CHECKING:
    from edgeclip.runtime.model import Model

LEARN_FROM = 131_072  # vectors that k-means moves its centres by: 256 MB at width 512. All are then given to their nearest


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
