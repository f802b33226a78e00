"""What the routers of a source say on the samples: how near each token is to taking another expert, and how many take which.

Two programs that round differently send a token to different experts where two logits are equal within their rounding. Such a
sample says nothing about either program, so it is counted, and left out of what is demanded.
Shapes: N samples, T tokens, E experts, k those that a token takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeclip.bundle import Experts
from edgeclip.models.clip import Block, ImageTower, TextTower
from edgeclip.models.feed_forward import MoeMlp, Recorder, moe_layers
from edgeclip.models.read_tokens import pooled_token, read_tokens

Array = NDArray[Any]
NEAR = 1e-5  # of a router's logits: the smallest difference that no rounding turns round


@dataclass(frozen=True)
class Routing:
    """Of one tower, on N samples; blocks in the tower's order."""

    margins: Array  # (N,) smallest difference between the k-th and the next logit, of the tokens that the embedding depends on
    everywhere: Array  # (N,) the same of every token but padding, in every block
    counts: tuple[
        Array, ...
    ] = ()  # (N, E) each: tokens that take an expert, of those that the embedding depends on
    chosen: tuple[Array, ...] = ()  # (N, T, E) bool each: False where a token is padding
    real: Array | None = None  # (N, T) bool: False where it is padding

    @property
    def near_ties(self) -> Array:
        """(N,) bool: a token of it might as well have taken another expert."""
        return np.asarray(self.margins < NEAR)


def experts_of(tower: nn.Module | None) -> Experts | None:
    """What the manifest says of a tower's mixtures; None: it has none."""
    tower = getattr(tower, "tower", tower)  # a region encoder's is within
    if not isinstance(tower, (ImageTower, TextTower)) or not moe_layers(tower):
        return None
    moe = tower.config.blocks.moe
    assert moe is not None
    blocks = tuple(i for i, count in enumerate(moe.experts) if count)
    return Experts(blocks, tuple(moe.experts[i] for i in blocks), moe.top_k)


def margin(logits: Tensor, top_k: int) -> Tensor:
    """(..., E) router logits -> (...): what the k-th is above the next; inf where a token takes every expert."""
    if top_k >= logits.shape[-1]:
        return torch.full(logits.shape[:-1], torch.inf)
    best = logits.topk(top_k + 1, dim=-1).values
    return best[..., -2] - best[..., -1]


@dataclass
class Watch:
    """Gathers a tower's Routing, chunk by chunk."""

    tower: ImageTower | TextTower
    parts: list[Routing] = field(default_factory=list)

    def add(self, recorder: Recorder, inputs: Tensor) -> None:
        """Take what was recorded while the tower ran on `inputs`, (n, 3, H, W) or (n, L)."""
        real, pooled, last = read_tokens(self.tower, inputs), pooled_token(self.tower, inputs), self._last()
        margins, everywhere, counts, chosen = [], [], [], []
        for layer, logits, shares in zip(recorder.layers, recorder.logits, recorder.shares, strict=True):
            read = pooled if layer is last and pooled is not None else real
            apart = margin(logits, layer.top_k)
            taken = shares > 0
            margins.append(_least(apart, read))
            everywhere.append(_least(apart, real))
            counts.append((taken & read[..., None]).sum(dim=1).numpy())
            chosen.append((taken & real[..., None]).numpy())
        self.parts.append(
            Routing(np.min(margins, 0), np.min(everywhere, 0), tuple(counts), tuple(chosen), real.numpy())
        )

    def routing(self) -> Routing:
        """Of all chunks, in their order."""
        parts = self.parts
        assert parts
        return Routing(
            np.concatenate([part.margins for part in parts]),
            np.concatenate([part.everywhere for part in parts]),
            tuple(np.concatenate(rows) for rows in zip(*(part.counts for part in parts), strict=True)),
            tuple(np.concatenate(rows) for rows in zip(*(part.chosen for part in parts), strict=True)),
            np.concatenate([part.real for part in parts if part.real is not None]),
        )

    def _last(self) -> MoeMlp | None:
        """The mixture of the last block."""
        block = self.tower.blocks[-1]
        assert isinstance(block, Block)
        return block.mlp if isinstance(block.mlp, MoeMlp) else None


def watches(towers: Sequence[tuple[str, nn.Module | None]]) -> dict[str, Watch]:
    """A watch for each tower that has mixtures."""
    return {
        kind: Watch(tower)
        for kind, tower in towers
        if isinstance(tower, (ImageTower, TextTower)) and moe_layers(tower)
    }


def _least(apart: Tensor, read: Tensor) -> Array:
    """(n, T) of the tokens that are read -> (n,)."""
    return apart.masked_fill(~read, torch.inf).amin(dim=1).numpy()
