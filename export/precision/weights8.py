"""Weights as signed bytes with a scale for each output, also where products of bytes are summed in 16 bits.

AVX2 and AVX-512 without VNNI multiply an unsigned by a signed byte and add two neighbouring products in 16 bits, which saturate:
255 * 127 twice is 64,770, the end is 32,767. Seven bits for the weights never get there and cost half the resolution. But only
the sum of two neighbours matters, and two neighbours are seldom both large: here each output's scale is the smallest with which
no pair can saturate whatever the activations are, 1.2 times the full one on Gaussian weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LARGEST = 127  # -128 stays unused: symmetric, as TensorRT wants it
# Of two neighbours of one sign: 255 * 128 = 32,640 is the largest multiple of 255 that 16 bits hold.
PAIR = 128


@dataclass(frozen=True)
class Bytes:
    """A quantised weight: `q * scale` is what it stands for."""

    q: Array  # (K, M) int8
    scale: Array  # (M,) float32, above 0

    @property
    def floats(self) -> Array:
        """(K, M) float32."""
        product: Array = self.q.astype(np.float32) * self.scale
        return product


def encode(weight: Array, *, saturating: bool) -> Bytes:
    """Round a weight to bytes. Nothing is clipped: at eight bits that gained nothing on random weights and on trained ones.

    Args:
        weight: (K, M) float, neighbours along K in the order in which the engine sums them.
        saturating: keep every pair of neighbours within what 16 bits hold.
    """
    scale = np.abs(weight).max(axis=0, initial=0) / LARGEST
    if saturating:
        # Two numbers with a sum below PAIR cannot both be rounded up beyond it; the margin is for the division.
        scale = np.maximum(scale, _largest_pair(weight) / PAIR * (1 + 1e-6))
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return Bytes(np.clip(np.rint(weight / scale), -LARGEST, LARGEST).astype(np.int8), scale)


def largest_pair(q: Array) -> int:
    """The largest sum of two neighbours of one sign; up to PAIR nothing can saturate. q: (K, M) bytes."""
    return int(_largest_pair(q.astype(np.int32)).max(initial=0))


def _largest_pair(weight: Array) -> Array:
    """(K, M) -> (M,): the largest |sum| of the positives or of the negatives of two neighbours along K."""
    pairs = _pairs(weight)
    positive, negative = (np.maximum(side, 0).sum(axis=1) for side in (pairs, -pairs))
    largest: Array = np.maximum(positive, negative).max(axis=0, initial=0)
    return largest


def _pairs(weight: Array) -> Array:
    """(K, M) -> (K / 2, 2, M), with a row of zeros behind an odd K."""
    if len(weight) % 2:
        weight = np.concatenate([weight, np.zeros_like(weight[:1])])
    return weight.reshape(-1, 2, weight.shape[1])
