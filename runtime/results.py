"""What a model gives back: classifications, the arithmetic that leads there, and what really runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError


@dataclass(frozen=True)
class Classification:
    """The labels of one picture, best first."""

    label: str | None  # the best one; None: none of these, no score reached its threshold
    score: float  # of the best one, 0-1
    label_index: int  # of `label` in the caller's list; -1 when it is None
    labels: tuple[str, ...]  # best first, at most top_k
    scores: tuple[float, ...]  # of `labels`
    label_indices: tuple[int, ...]  # of `labels` in the caller's list

    def ranked(self) -> list[tuple[str, float]]:
        """(label, score), best first."""
        return list(zip(self.labels, self.scores, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "label": self.label,
            "score": self.score,
            "label_index": self.label_index,
            "labels": list(self.labels),
            "scores": list(self.scores),
        }


@dataclass(frozen=True)
class ModelInfo:
    """What really runs. A tower that has not been used yet is not open."""

    name: str
    towers: dict[str, dict[str, str]]  # "image"/"text" -> engine, provider, variant, precision[, fell_back]
    threads: int
    decode: str

    def __str__(self) -> str:
        parts = [f"{kind}: {used['variant']} on {used['engine']}" for kind, used in self.towers.items()]
        return f"{self.name} ({', '.join(parts) or 'no tower open'}; {self.threads} threads)"


def to_scores(
    cosines: NDArray[np.float32], scale: float, bias: float, activation: Literal["softmax", "sigmoid"]
) -> NDArray[np.float64]:
    """(N, P) cosines -> (N, P) scores in 0-1: softmax over the labels of a picture, or a sigmoid for each by itself."""
    logits = scale * cosines.astype(np.float64) + bias
    if activation == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return 0.5 * (1 + np.tanh(logits / 2))  # a sigmoid that cannot overflow


def check_choice(top_k: int | None, threshold: float | None) -> None:
    """Raise InputError for what no result can be cut to."""
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k: expected 1 or more, got {top_k}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold: expected 0 to 1, got {threshold}.")


def rank(
    scores: NDArray[np.float64], labels: Sequence[str], top_k: int | None, thresholds: Sequence[float] | None
) -> Classification:
    """One picture's (P,) scores, best first; ties keep the caller's order.

    Args:
        thresholds: of each label; the answer is the best label that reaches its own. None: no threshold.
    """
    # Python's own numbers from here on: picking thousands of numpy's one by one takes four times as long
    order, values = np.argsort(-scores, kind="stable").tolist(), scores.tolist()
    good = order if thresholds is None else (i for i in order if values[i] >= thresholds[i])
    chosen: int = next(iter(good), -1)
    order = order[:top_k]
    return Classification(
        label=labels[chosen] if chosen >= 0 else None,
        score=values[chosen if chosen >= 0 else order[0]],
        label_index=chosen,
        labels=tuple([labels[i] for i in order]),
        scores=tuple([values[i] for i in order]),
        label_indices=tuple(order),
    )
