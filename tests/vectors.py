"""Embeddings like a CLIP model's: clusters in few directions, a mean of their own for each kind, a few large dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def clip_like(count: int, dim: int, kind: str = "image", seed: int = 0) -> NDArray[np.float32]:
    """(count, dim) float32 unit rows. Kinds share their clusters and directions; another seed gives other rows of the same model."""
    world, random = np.random.default_rng(1), np.random.default_rng([seed, kind == "text"])
    turn = np.linalg.qr(world.normal(size=(dim, dim)))[0]
    spread = np.arange(1, dim + 1) ** -0.6  # of the directions
    clusters = world.normal(size=(100, dim)) * spread
    means = world.normal(size=(2, dim))
    means[:, world.integers(0, dim, 2)] *= 8
    means *= np.sqrt((spread**2).sum()) / np.linalg.norm(means, axis=1, keepdims=True)
    rows = (
        clusters[random.integers(0, len(clusters), count)] + 0.6 * random.normal(size=(count, dim)) * spread
    )
    rows = rows @ turn + means[int(kind == "text")]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
