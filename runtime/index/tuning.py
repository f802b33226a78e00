"""Weight and threshold of record linkage, chosen by records whose match or entity is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.index.components import Numbers, Sets, Vectors
from edgeclip.runtime.index.linkage import Linkage, Records

WEIGHTS = tuple(i / 20 for i in range(21))  # that are tried
CUTS = 200  # thresholds that are tried for a weight


@dataclass(frozen=True)
class Tuned:
    """The best of what was tried, and how good it is on the labelled records: on others it will be less."""

    linkage: Linkage
    score: float  # of what was tuned for: F1 of links, or the adjusted Rand index of entities
    picture_alone: float  # the best score with weight 1
    text_alone: float  # with weight 0

    def to_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return {
            "weight": self.linkage.weight, "threshold": self.linkage.threshold, "score": round(self.score, 6),
            "picture_alone": round(self.picture_alone, 6), "text_alone": round(self.text_alone, 6),
        }  # fmt: skip


def tune_links(
    left: Records, right: Records, matches: Sequence[int], weights: Sequence[float] = WEIGHTS
) -> Tuned:
    """Choose weight and threshold by the F1 of links to a reference.

    Args:
        left: N records whose match is known.
        right: the whole reference: what stands in the way counts.
        matches: N places in `right`, -1 where there is none.
        weights: to try.
    Raises:
        InputError: no match at all.
    """
    truth = np.asarray(matches, np.int64)
    if not (truth >= 0).any():
        raise InputError(
            "tune: none of the labelled records has a match. Label some pairs that are the same."
        )
    tried: dict[float, tuple[float, float]] = {}
    for weight in weights:
        found, cosines = right.pooled(weight).search_ids(left.pooled(weight).vectors, 1)
        hit = found[:, 0] == np.where(truth >= 0, right.ids[truth], -1)
        tried[weight] = _best_f1(1 - cosines[:, 0].astype(np.float64), hit, int((truth >= 0).sum()))
    return _best(tried)


def tune_entities(records: Records, entities: Sequence[Any], weights: Sequence[float] = WEIGHTS) -> Tuned:
    """Choose weight and threshold by the adjusted Rand index of single linkage on records whose entity is known.

    Args:
        records: N, whose entity is known.
        entities: N names or numbers: equal ones are the same thing.
        weights: to try.
    Raises:
        InputError: fewer than two entities, or none that comes twice: there is nothing to learn from.
    """
    truth = np.unique(np.asarray(entities), return_inverse=True)[1].reshape(-1)
    counts = np.bincount(truth)
    if len(counts) < 2 or counts.max() < 2:
        raise InputError(
            f"tune: expected two entities or more, of which some come twice, got {len(counts)} in {len(truth)} records."
        )
    tried: dict[float, tuple[float, float]] = {}
    for weight in weights:
        tree = spanning_tree(records.pooled(weight).vectors)
        tried[weight] = _best_rand(tree, truth)
    return _best(tried)


def spanning_tree(vectors: Vectors) -> tuple[Numbers, Numbers, NDArray[np.float64]]:
    """The tree of least distance through all (N, D) rows, whose short edges alone are single linkage at any threshold.

    N passes over the rows and no N x N matrix.

    Returns:
        (N - 1,) places, (N - 1,) places, (N - 1,) distances (1 - cosine), ascending.
    Source: Prim 1957.
    """
    count = len(vectors)
    best, via = np.full(count, np.inf), np.zeros(count, np.int64)
    outside = np.ones(count, bool)
    edges: list[tuple[int, int, float]] = []
    now = 0
    for _ in range(count - 1):
        outside[now] = False
        distance = np.maximum(1 - (vectors @ vectors[now]).astype(np.float64), 0)
        nearer = outside & (distance < best)
        best[nearer], via[nearer] = distance[nearer], now
        now = int(np.where(outside, best, np.inf).argmin())
        edges.append((int(via[now]), now, float(best[now])))
    edges.sort(key=lambda edge: edge[2])
    a, b, distances = zip(*edges, strict=True) if edges else ((), (), ())
    return np.array(a, np.int64), np.array(b, np.int64), np.array(distances, np.float64)


def rand_index(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Adjusted Rand index of two partitions of N items: 1 the same, 0 what chance gives.

    Source: Hubert and Arabie 1985.
    """
    a, b = (np.unique(labels, return_inverse=True)[1].reshape(-1) for labels in (one, other))
    both = np.unique(a * (b.max(initial=0) + 1) + b, return_counts=True)[1]
    pairs, in_a, in_b = (float((n * (n - 1) / 2).sum()) for n in (both, np.bincount(a), np.bincount(b)))
    total = len(a) * (len(a) - 1) / 2
    expected = in_a * in_b / total if total else 0
    most = (in_a + in_b) / 2
    return 1.0 if most == expected else (pairs - expected) / (most - expected)


def _best_f1(distances: NDArray[np.float64], right: NDArray[np.bool_], matches: int) -> tuple[float, float]:
    """(F1, the threshold that gives it): each record links to its nearest, nearest pairs first."""
    order = np.argsort(distances, kind="stable")
    distances = np.maximum(distances[order], 0)
    f1 = 2 * np.cumsum(right[order]) / (np.arange(1, len(order) + 1) + matches)
    last = np.append(np.diff(distances) > 0, True)  # equal distances are linked together or not at all
    best = int(np.where(last, f1, -1).argmax())
    return float(f1[best]), _between(distances, best)


def _best_rand(
    tree: tuple[Numbers, Numbers, NDArray[np.float64]], truth: NDArray[Any]
) -> tuple[float, float]:
    """(adjusted Rand index, the threshold that gives it)."""
    a, b, distances = tree
    ends = np.flatnonzero(np.append(np.diff(distances) > 0, True))
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, min(CUTS, len(ends))).round().astype(int))]
    sets, done, best = Sets(len(truth)), 0, (-np.inf, 0.0)
    for end in ends.tolist():
        sets.join(a[done : end + 1], b[done : end + 1])
        done = end + 1
        if (score := rand_index(sets.roots, truth)) > best[0]:
            best = (score, _between(distances, end))
    return best


def _between(distances: NDArray[np.float64], last: int) -> float:
    """Midway between the last distance that is linked and the next: the least likely to depend on rounding."""
    upper = distances[last + 1] if last + 1 < len(distances) else distances[last]
    return round(float((distances[last] + upper) / 2), 6)


def _best(tried: dict[float, tuple[float, float]]) -> Tuned:
    weight = max(
        tried, key=lambda each: (tried[each][0], -abs(each - 0.5))
    )  # of equals the one nearest to the middle
    score, threshold = tried[weight]
    nothing = (float("nan"), 0.0)
    return Tuned(Linkage(weight, threshold), score, tried.get(1.0, nothing)[0], tried.get(0.0, nothing)[0])
