"""Traceable towers of encoders that read in both directions: BERT's relatives, T5, and the ViT that has BERT's pooler.

What differs from the source's own forward, beside what clip_towers.py says: the embedding of token type 0 is part of the
positions; what one position adds to another's score in T5 is a constant, of which a text takes the corner of its length; two
linear layers with nothing between them are one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.export import token_merging
from edgeclip.export.clip_towers import MASKED, Attend, Rows, expected, image_tower
from edgeclip.export.traced import Linear, TracedMlp
from edgeclip.models.feed_forward import activate
from edgeclip.models.pooled_vit import PooledVitTower
from edgeclip.models.t5 import T5Block, T5Tower
from edgeclip.models.text_encoder import EncoderBlock, TextEncoderTower

Towers = tuple[nn.Module, dict[str, int]]


def encoder_tower(tower: TextEncoderTower) -> Towers:
    """-> (input_ids (N, L) int32 -> (N, D), expected operators)."""
    traceable = _Encoder(tower)
    return traceable, expected(traceable, tower.config.blocks.layers)


def t5_tower(tower: T5Tower) -> Towers:
    """-> (input_ids (N, L) int32 -> (N, D), expected operators)."""
    traceable = _T5(tower)
    norms = 2 * tower.config.layers + 1
    # opset 20 has no operator for an RMS norm: its mean stands in the graph
    return traceable, {**expected(traceable, tower.config.layers), "ReduceMean": norms}


def pooled_vit_tower(tower: PooledVitTower, merging: int = 0) -> Towers:
    """-> (pixels (N, 3, H, W) -> (N, D), expected operators). `merging`: tokens merged away in each block."""
    assert tower.projection is not None
    traceable, counts = token_merging.image_tower(tower, merging) if merging else image_tower(tower)
    traceable.projection = nn.Sequential(Linear(tower.pooler), nn.Tanh(), Linear(tower.projection))
    return traceable, {**counts, "linears": counts["linears"] + 1}


def projection(module: nn.Module) -> nn.Module:
    """The traceable form of `make_projection`'s."""
    if isinstance(module, nn.Linear):
        return Linear(module)
    if not isinstance(module, nn.Sequential):
        return nn.Identity()
    first, last = module[0], module[-1]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    return _joined(first, last) if len(module) == 2 else nn.Sequential(Linear(first), nn.GELU(), Linear(last))


def _joined(first: nn.Linear, last: nn.Linear) -> Linear:
    """One layer that does what two do, multiplied in fp64."""
    joined = nn.Linear(first.in_features, last.out_features)
    weight = last.weight.detach().double()
    joined.weight = nn.Parameter((weight @ first.weight.detach().double()).float())
    joined.bias = nn.Parameter((weight @ first.bias.detach().double()).float())
    return Linear(joined)


def mean_seen(x: Tensor, seen: Tensor) -> Tensor:
    """(N, L, W) tokens and (N, L), 1 or 0 -> (N, W) the mean of those with 1."""
    return ((seen / seen.sum(dim=1, keepdim=True))[:, None] @ x)[:, 0]


def _first(tokens: Tensor) -> Tensor:
    return tokens[:, :1]


class _EncoderBlock(nn.Module):
    """A post-norm residual block; with `rows`, only for the token that `rows` takes."""

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        heads, width = block.attention.heads, block.attention.out.in_features
        self.qkv = Linear(block.attention.qkv, scaled=width, scale=(width // heads) ** -0.5)
        self.attend, self.out = Attend(heads), Linear(block.attention.out)
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.mlp = TracedMlp(block.mlp)

    def forward(self, x: Tensor, mask: Tensor, rows: Rows | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if rows is not None:
            q, x = rows(q), rows(x)
        x = self.norm1(x + self.out(self.attend(self.attend.split(q), k, v, mask)))
        return self.norm2(x + self.mlp(x))  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    def __init__(self, tower: TextEncoderTower) -> None:
        super().__init__()
        self.config = tower.config
        self.embedding, self.norm_embedding = tower.embedding, tower.norm_embedding
        rows = tower.position.weight + tower.token_type.weight[0]
        self.position = nn.Parameter(rows.detach().clone(), requires_grad=False)
        self.order = nn.Buffer(torch.arange(tower.config.context_length).float())
        self.blocks = nn.ModuleList(
            _EncoderBlock(block) for block in tower.blocks if isinstance(block, EncoderBlock)
        )
        self.norm_final = tower.norm_final
        self.pooler = None if tower.pooler is None else Linear(tower.pooler)
        self.projection = projection(tower.projection)

    def _positions(self, seen: Tensor) -> Tensor:
        """(N, L), 1 for a token that is no padding -> (N or 1, L, W)."""
        length = seen.shape[1]
        if not self.config.counted:
            return self.position[:length]
        order = self.order[:length]
        # a running count as a product with a triangle: exact, and every engine has it
        counts = seen @ (order[:, None] <= order).float()
        return F.embedding((counts * seen).int() + self.config.pad_id, self.position)

    def forward(self, input_ids: Tensor) -> Tensor:
        padding = (input_ids == self.config.pad_id).float()
        mask = (padding * MASKED)[:, None, None, :]
        x = self.norm_embedding(self.embedding(input_ids) + self._positions(1 - padding))
        only: Callable[[Tensor], Tensor] | None = None if self.config.pool == "mean" else _first
        for i, block in enumerate(self.blocks, 1):
            x = block(x, mask, only if i == len(self.blocks) else None)
        if self.norm_final is not None:
            x = self.norm_final(x)
        x = mean_seen(x, 1 - padding) if only is None else x[:, 0]
        if self.pooler is not None:
            x = torch.tanh(self.pooler(x))
        return self.projection(x)  # type: ignore[no-any-return]


class _T5Block(nn.Module):
    def __init__(self, block: T5Block) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv, self.attend, self.out = Linear(block.qkv), Attend(block.heads), Linear(block.out)
        self.gates, self.down = Linear(block.gates), Linear(block.down)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(self.attend(self.attend.split(q), k, v, mask))
        gate, value = self.gates(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(activate(gate, "gelu_tanh") * value)  # type: ignore[no-any-return]


class _T5(nn.Module):
    def __init__(self, tower: T5Tower) -> None:
        super().__init__()
        self.pad_id = tower.config.pad_id
        self.embedding, self.norm_final = tower.embedding, tower.norm_final
        self.bias = nn.Buffer(tower.bias(tower.config.context_length).detach().contiguous())
        self.blocks = nn.ModuleList(_T5Block(block) for block in tower.blocks if isinstance(block, T5Block))
        self.projection = projection(tower.projection)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        padding = (input_ids == self.pad_id).float()
        mask = self.bias[:, :, :length, :length] + (padding * MASKED)[:, None, None, :]  # (N, h, L, L)
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.projection(mean_seen(self.norm_final(x), 1 - padding))  # type: ignore[no-any-return]
