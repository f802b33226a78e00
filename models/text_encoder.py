"""Encoders that read a text in both directions, with a norm behind each residual: BERT, RoBERTa, XLM-R.

Shapes: N texts, L text positions, W tower width, D embedding width.
Sources: Devlin et al. 2018, arXiv:1810.04805; Liu et al. 2019, arXiv:1907.11692. Poolings follow transformers and open_clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgeclip.models.clip import Attention
from edgeclip.models.config import TransformerConfig
from edgeclip.models.feed_forward import Mlp

EncoderPool = Literal["first", "pooler", "mean"]
Projection = Literal["none", "linear", "mlp", "double"]


@dataclass(frozen=True)
class EncoderConfig:
    """The text tower of Chinese-CLIP, AltCLIP, clip-italian, and of OpenCLIP's models with RoBERTa or XLM-R."""

    KIND: ClassVar[str] = "encoder"

    blocks: TransformerConfig
    vocab_size: int
    positions: int  # rows of the position embedding
    pad_id: int  # not attended to, not averaged
    # True: positions count the tokens that are no padding, from pad_id + 1 on, and padding has position pad_id (RoBERTa);
    # False: 0, 1, 2 ... (BERT)
    counted: bool = False
    token_types: int = 2  # rows of the token type embedding; every token is of type 0
    longest: int = 0  # texts are cut to it; 0: to what the positions hold
    pool: EncoderPool = "first"
    # "first": the first token; "pooler": the first token through a linear layer and tanh; "mean": of the tokens that are no padding
    norm_final: bool = False  # LayerNorm behind the last block (AltCLIP)
    projection: Projection = "linear"
    # "linear": without a bias; "mlp": linear, GELU, linear, without biases; "double": linear with a bias, linear without (AltCLIP)
    projection_width: int = 0  # between the two layers of "mlp" and "double"

    def __post_init__(self) -> None:
        if self.blocks.moe is not None:
            raise ValueError("the blocks of an encoder of this kind have one feed-forward each, no experts")

    @property
    def context_length(self) -> int:
        """Largest L."""
        return self.longest or self.positions - (self.pad_id + 1 if self.counted else 0)

    @property
    def eos_id(self) -> int:
        """No tower of this kind looks for an end."""
        return -1

    def ignores_padding(self, pad_id: int, eos_id: int) -> bool:
        """Padding is hidden from attention and pooling, if it is the id that texts are padded with."""
        return pad_id == self.pad_id


def make_projection(kind: Projection, width: int, hidden: int, embed_dim: int) -> nn.Module:
    """From the pooled width to the embedding width; see `EncoderConfig.projection`."""
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(width, embed_dim, bias=False)
    double = kind == "double"
    layers = [nn.Linear(width, hidden, bias=double), nn.Linear(hidden, embed_dim, bias=False)]
    return nn.Sequential(*layers) if double else nn.Sequential(layers[0], nn.GELU(), layers[1])


def mean_seen(x: Tensor, seen: Tensor) -> Tensor:
    """(N, L, W) tokens and (N, L) bool -> (N, W) the mean of those that are seen."""
    weights = seen.to(x.dtype)
    return (weights[:, None] @ x)[:, 0] / weights.sum(dim=1, keepdim=True)


class EncoderBlock(nn.Module):
    """Post-norm residual block: norm1(x + attention(x)), then norm2(x + mlp(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads)
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.mlp(x))  # type: ignore[no-any-return]


class TextEncoderTower(nn.Module):
    """Token ids to one embedding per text."""

    def __init__(self, config: EncoderConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width, eps = config.blocks.width, config.blocks.norm_eps
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.position = nn.Embedding(config.positions, width)
        self.token_type = nn.Embedding(config.token_types, width)
        self.norm_embedding = nn.LayerNorm(width, eps=eps)
        self.blocks = nn.ModuleList(EncoderBlock(config.blocks) for _ in range(config.blocks.layers))
        self.norm_final = nn.LayerNorm(width, eps=eps) if config.norm_final else None
        self.pooler = nn.Linear(width, width) if config.pool == "pooler" else None
        self.projection = make_projection(config.projection, width, config.projection_width, embed_dim)

    def positions(self, seen: Tensor) -> Tensor:
        """(N, L) bool, whether a token is no padding -> (1 or N, L) rows of the position embedding."""
        if not self.config.counted:
            return torch.arange(seen.shape[1], device=seen.device)[None]
        return seen.cumsum(dim=1) * seen + self.config.pad_id

    def forward(self, input_ids: Tensor) -> Tensor:
        """(N, L) integer ids, L <= context_length -> (N, D), not yet of unit length."""
        seen = input_ids != self.config.pad_id
        x = self.embedding(input_ids) + self.token_type.weight[0] + self.position(self.positions(seen))
        x = self.norm_embedding(x)
        for block in self.blocks:
            x = block(x, seen[:, None, None, :])
        if self.norm_final is not None:
            x = self.norm_final(x)
        x = mean_seen(x, seen) if self.config.pool == "mean" else x[:, 0]
        if self.pooler is not None:
            x = torch.tanh(self.pooler(x))
        return self.projection(x)  # type: ignore[no-any-return]
