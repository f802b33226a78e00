"""Fewer tokens from block to block: after its attention, each block merges the r most alike pairs (ToMe), training-free.

Tokens at even places propose, those at odd places accept: each proposer names the acceptor whose keys, summed over heads, have
the largest cosine with its own, and the r closest pairs become one token each, their mean weighted by how many patches
each stands for. Attention adds the logarithm of that number to the scores ("proportional attention"), so that a token of two
equal patches counts as both did. The class token is never merged. How many tokens a block gets is known when it is traced;
which ones, each picture decides for itself.

Shapes: N batch, T tokens, W width, P leading tokens that are never merged, A = proposers, B = acceptors.
Source: Bolya et al. 2023, arXiv:2210.09461, sections 3 and 4 (proportional attention is on: off-the-shelf models need it).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from edgeclip.export.clip_towers import TracedBlock, TracedImage, attention_bias, expected
from edgeclip.models.clip import Block, ImageTower

_SMALLEST_NORM = 1e-6  # keys that are all zero are like nothing instead of NaN


def schedule(tokens: int, prefix: int, blocks: int, r: int) -> list[int]:
    """Tokens that enter each of the blocks, and last those that leave: r fewer each time, at most half of what may be merged."""
    counts = [tokens]
    for _ in range(blocks):
        counts.append(counts[-1] - min(r, (counts[-1] - prefix) // 2))
    return counts


def image_tower(tower: ImageTower, r: int) -> tuple[nn.Module, dict[str, int]]:
    """-> (pixels (N, 3, H, W) -> (N, D), expected operators). `r`: tokens merged away in each block."""
    traceable = _MergingImage(tower, r)
    sorts = sum(1 + module.some_stay for module in traceable.modules() if isinstance(module, Merge))
    means = int(tower.config.pool == "attentional_avg")
    counts = expected(traceable, tower.config.blocks.layers)
    return traceable, {**counts, "ReduceMean": means, "TopK": sorts}


class Merge(nn.Module):
    """r pairs of tokens become one token each."""

    def __init__(self, tokens: int, r: int, prefix: int) -> None:
        super().__init__()
        self.r, self.prefix = r, prefix
        self.some_stay = len(range(2 * prefix, tokens, 2)) > r  # of the proposers
        self.acceptors = nn.Buffer(torch.arange(len(range(1, tokens, 2)))[:, None])  # (B, 1)

    def forward(self, x: Tensor, size: Tensor | None, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Merge by the likeness of keys.

        Args:
            x: (N, T, W).
            size: (N, T, 1) patches that each token stands for; None: one each.
            keys: (N, T, d).
        Returns:
            (N, T - r, W): the leading tokens, proposers that stay, acceptors; and their sizes.
        """
        size = torch.ones_like(x[..., :1]) if size is None else size
        going, staying, target = self._pairs(keys)
        x, size = self._joined(x * size, going, staying, target), self._joined(size, going, staying, target)
        return x / size, size

    def _pairs(self, keys: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(N, r) proposers that go, (N, A - r) those that stay in their order (None: all go), and (N, B, r): 1 where an acceptor gets one."""
        norms = torch.linalg.vector_norm(keys, dim=-1, keepdim=True)
        unit = keys / norms.clamp_min(_SMALLEST_NORM)
        alike = unit[:, 2 * self.prefix :: 2] @ unit[:, 1::2].transpose(1, 2)  # (N, A, B)
        order = alike.amax(dim=-1).topk(alike.shape[1]).indices
        going = order[:, : self.r]
        staying = None
        if self.some_stay:  # float holds every index below 2**24, and not every engine sorts integers
            staying = (-(-order[:, self.r :].float()).topk(alike.shape[1] - self.r).values).long()
        chosen = torch.gather(alike.argmax(dim=-1), 1, going)  # (N, r)
        return going, staying, (chosen[:, None, :] == self.acceptors).float()

    def _joined(self, x: Tensor, going: Tensor, staying: Tensor | None, target: Tensor) -> Tensor:
        """(N, T, C) sums -> (N, T - r, C)."""
        proposers = x[:, 2 * self.prefix :: 2]
        accepted = x[:, 1::2] + target @ _rows(proposers, going)  # a product: no engine lacks it
        stay = [] if staying is None else [_rows(proposers, staying)]
        return torch.cat([x[:, : self.prefix], *stay, accepted], dim=1)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(N, A, C) at (N, K) -> (N, K, C)."""
    return torch.gather(x, 1, index[..., None].expand(-1, -1, x.shape[-1]))


class _MergingBlock(TracedBlock):
    """A block that merges between its attention and its feed-forward."""

    def __init__(self, block: Block, merge: Merge | None) -> None:
        super().__init__(block)
        self.merge = merge

    def tokens(self, x: Tensor, size: Tensor | None, only_first: bool) -> tuple[Tensor, Tensor | None]:
        """(N, T, W) and sizes -> the same of what is left."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        if only_first:
            q, x = q[:, :1], x[:, :1]
        x = x + self.out(self.attend(self.attend.split(q), k, v, attention_bias(size)))
        if self.merge is not None:
            keys = torch.unflatten(k, -1, (self.attend.heads, -1)).sum(dim=2)  # as alike as their mean
            x, size = self.merge(x, size, keys)
        return x + self.mlp(self.norm2(x)), size


class _MergingImage(TracedImage):
    def __init__(self, tower: ImageTower, r: int) -> None:
        super().__init__(tower)
        config = tower.config
        prefix = int(config.class_token)
        counts = list(pairwise(schedule(config.tokens, prefix, config.blocks.layers, r)))
        if config.pool == "cls":  # the last block has but one token to compute
            counts[-1] = counts[-1][0], counts[-1][0]
        self.blocks = nn.ModuleList(
            _MergingBlock(block, Merge(before, before - after, prefix) if before > after else None)
            for block, (before, after) in zip(tower.blocks, counts, strict=True)
            if isinstance(block, Block)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x, size = self._embedded(pixels), None
        for i, block in enumerate(self.blocks, 1):
            only_first = i == len(self.blocks) and self.config.pool == "cls"
            x, size = block.tokens(x, size, only_first)  # type: ignore[operator]
        x = self._pool(x, size)
        return x if self.projection is None else self.projection(x)
