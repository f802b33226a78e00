"""The encoder of T5 and mT5, in its later form: RMS norms, positions as a bias of attention, gated feed-forward.

Shapes: N texts, L text positions, W tower width, h heads, d head width, D embedding width.
Source: Raffel et al. 2019, arXiv:1910.10683; Shazeer 2020, arXiv:2002.05202 (gates), as transformers' MT5 has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.models.feed_forward import activate
from edgeclip.models.text_encoder import Projection, make_projection, mean_seen


@dataclass(frozen=True)
class T5Config:
    """The text tower of OpenCLIP's models with mT5. Its activation is GELU in the tanh form."""

    KIND: ClassVar[str] = "t5"

    width: int
    layers: int
    heads: int
    head_width: int
    mlp_width: int
    vocab_size: int
    context_length: int
    buckets: int = 32  # of distances between tokens, half of them for each direction
    farthest: int = 128  # distances from here on share a bucket
    norm_eps: float = 1e-6
    pad_id: int = 0
    projection: Projection = "mlp"
    projection_width: int = 0

    @property
    def pool(self) -> str:
        """The mean of the tokens that are no padding."""
        return "mean"

    @property
    def eos_id(self) -> int:
        """The tower does not look for an end."""
        return -1

    def ignores_padding(self, pad_id: int, eos_id: int) -> bool:
        """Padding is hidden from attention and pooling, if it is the id that texts are padded with."""
        return pad_id == self.pad_id


def distance_buckets(length: int, buckets: int, farthest: int) -> Tensor:
    """(L, L) the bucket of each pair of query (row) and key: near distances have their own, far ones share by their logarithm."""
    order = torch.arange(length)
    distance = order - order[:, None]
    side = buckets // 2
    near = side // 2
    size = distance.abs()
    # the logarithm in fp32 and cut towards zero, as T5 was trained: at its steps another precision gives another bucket
    far = (
        near
        + (torch.log(size.float().clamp_min(1) / near) / math.log(farthest / near) * (side - near)).long()
    )
    return side * (distance > 0) + torch.where(size < near, size, far.clamp_max(side - 1))


class RmsNorm(nn.Module):
    """x divided by its root mean square, times a weight; in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        unit = wide * torch.rsqrt((wide * wide).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * unit.to(x.dtype)


class T5Block(nn.Module):
    """Pre-norm residual block. Attention without scale and biases; rows of `qkv` are all queries, then keys, then values."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.head_width
        self.norm1 = RmsNorm(config.width, config.norm_eps)
        self.qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)
        self.norm2 = RmsNorm(config.width, config.norm_eps)
        self.gates = nn.Linear(
            config.width, 2 * config.mlp_width, bias=False
        )  # rows: through GELU, then as they are
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, L, W) -> (N, L, W). `mask`: (N, h, L, L) added to the scores."""
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, value = self.gates(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(activate(gate, "gelu_tanh") * value)  # type: ignore[no-any-return]


class T5Tower(nn.Module):
    """Token ids to one embedding per text."""

    def __init__(self, config: T5Config, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.distance = nn.Embedding(config.buckets, config.heads)  # one for all blocks
        self.blocks = nn.ModuleList(T5Block(config) for _ in range(config.layers))
        self.norm_final = RmsNorm(config.width, config.norm_eps)
        self.projection = make_projection(config.projection, config.width, config.projection_width, embed_dim)

    def bias(self, length: int) -> Tensor:
        """(1, h, L, L) what the distance of two tokens adds to their score."""
        config = self.config
        buckets = distance_buckets(length, config.buckets, config.farthest).to(self.distance.weight.device)
        return self.distance(buckets).permute(2, 0, 1)[None]  # type: ignore[no-any-return]

    def forward(self, input_ids: Tensor) -> Tensor:
        """(N, L) integer ids, L <= context_length -> (N, D), not yet of unit length."""
        seen = input_ids != self.config.pad_id
        hidden = torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, -torch.inf)
        mask = self.bias(input_ids.shape[1]) + hidden[:, None, None, :]
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.projection(mean_seen(self.norm_final(x), seen))  # type: ignore[no-any-return]
