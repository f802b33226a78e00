"""The canonical CLIP: one transformer into which checkpoints of the family are loaded.

Own layout (fused QKV, linear projections), so that export, compression and student surgery meet one set of names.
Shapes: N pictures or texts, L text positions, T image tokens, W tower width, D embedding width.
Sources: Radford et al. 2021, arXiv:2103.00020; the pooling variants follow transformers and open_clip (see config.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig, TransformerConfig
from edgeclip.models.feed_forward import Mlp, feed_forward
from edgeclip.models.source import DualEncoder
from edgeclip.models.towers import build_tower


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection; rows of `qkv` are all queries, then keys, then values."""

    def __init__(self, width: int, heads: int, inner: int = 0) -> None:
        """`inner`: of all heads together; 0: `width`."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * (inner or width))
        self.out = nn.Linear(inner or width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """(N, T, W) -> (N, T, W). `mask`: bool, True = attend, broadcast to (N, heads, T, T)."""
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def values(self, x: Tensor) -> Tensor:
        """(N, T, W) -> (N, T, W): every token's own value, as if it attended to itself alone."""
        first = 2 * self.out.in_features
        return self.out(F.linear(x, self.qkv.weight[first:], self.qkv.bias[first:]))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm1(x)), then + mlp(norm2(x)), which may be a mixture of experts."""

    def __init__(self, config: TransformerConfig, number: int = 0) -> None:
        """`number`: which one of its stack, from 0; says how many experts its feed-forward has."""
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config.width, config.heads, config.inner_width)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = feed_forward(config, number)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        x = x + self.attention(self.norm1(x), mask, causal)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class MapHead(nn.Module):
    """SigLIP's pooling: one learned query attends to all tokens, then a residual feed-forward.

    Source: Zhai et al. 2022, arXiv:2106.04560 (MAP head), as SigLIP uses it.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.width))
        self.heads = config.heads
        inner = config.inner_width
        self.q = nn.Linear(config.width, inner)
        self.kv = nn.Linear(config.width, 2 * inner)
        self.out = nn.Linear(inner, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation)
        nn.init.normal_(self.probe, std=config.width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, W) -> (N, W)."""
        n, t, _ = x.shape
        q = self.q(self.probe).view(1, 1, self.heads, -1).transpose(1, 2).expand(n, -1, -1, -1)
        k, v = self.kv(x).view(n, t, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (y + self.mlp(self.norm(y)))[:, 0]  # type: ignore[no-any-return]


class AttentionalPooler(nn.Module):
    """OpenCLIP's pooler: learned queries cross-attend to the tokens; the first query is the pooled vector.

    Source: Yu et al. 2022 (CoCa), arXiv:2205.01917, in open_clip's form (norm on queries and on tokens, no feed-forward).
    """

    def __init__(self, width: int, out_width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(queries, out_width))
        # open_clip's pooler keeps the default epsilon, whatever the config says
        self.norm_q = nn.LayerNorm(out_width)
        self.norm_k = nn.LayerNorm(width)
        self.q = nn.Linear(out_width, out_width)
        self.k = nn.Linear(width, out_width)
        self.v = nn.Linear(width, out_width)
        self.out = nn.Linear(out_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, W) -> (N, Q, out_width)."""
        x = self.norm_k(x)
        n, t = x.shape[:2]
        head = self.query.shape[1] // self.heads
        q = (
            self.q(self.norm_q(self.query))
            .view(1, -1, self.heads, head)
            .transpose(1, 2)
            .expand(n, -1, -1, -1)
        )
        k = self.k(x).view(n, t, self.heads, head).transpose(1, 2)
        v = self.v(x).view(n, t, self.heads, head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(y)  # type: ignore[no-any-return]


class ImageTower(nn.Module):
    """Vision transformer: pixels to one embedding per picture, and to one per patch on request."""

    def __init__(self, config: ImageConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width, eps = config.blocks.width, config.blocks.norm_eps
        self.patches = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=config.patch_bias)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5) if config.class_token else None
        self.position = (
            nn.Parameter(torch.randn(config.tokens, width) * width**-0.5)
            if config.position_embedding
            else None
        )
        self.norm_pre = nn.LayerNorm(width, eps=eps) if config.norm_pre else None
        self.blocks = nn.ModuleList(Block(config.blocks, i) for i in range(config.blocks.layers))
        pooled = config.pool_width or width
        self.norm_post = (
            nn.LayerNorm(pooled if config.norm_after_pool else width, eps=eps) if config.norm_post else None
        )
        self.head: MapHead | AttentionalPooler | None = None
        if config.pool == "map":
            self.head = MapHead(config.blocks)
        elif config.pool in ("attentional", "attentional_avg"):
            self.head = AttentionalPooler(width, config.pool_width, config.pool_heads, config.pool_queries)
        self.projection = (
            nn.Linear(pooled, embed_dim, bias=config.projection_bias) if config.projection else None
        )

    def embedded(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pixels -> (N, T, W) tokens before the first block."""
        x: Tensor = self.patches(pixels).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        if self.position is not None:
            x = x + self.position
        return x if self.norm_pre is None else self.norm_pre(x)

    def tokens(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pixels -> (N, T, W) tokens after the last block, before norm_post."""
        x = self.embedded(pixels)
        for block in self.blocks:
            x = block(x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """(N, T, W) tokens -> (N, W) by the config's rule, norm_post included."""
        config = self.config
        if self.norm_post is not None and not config.norm_after_pool:
            x = self.norm_post(x)
        if self.head is not None:
            x = self.head(x)
        if config.pool == "cls":
            x = x[:, 0]
        elif config.pool == "avg":
            x = x[:, int(config.class_token) :].mean(dim=1)
        if self.norm_post is not None and config.norm_after_pool:
            x = self.norm_post(x)
        if config.pool == "attentional":  # the norm saw every query, the first one stands for the picture
            return x[:, 0]
        return x[:, 1:].mean(dim=1) if config.pool == "attentional_avg" else x

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pixels -> (N, D), not yet of unit length."""
        return self.embed(self.tokens(pixels))

    def embed(self, x: Tensor) -> Tensor:
        """(N, T, W) tokens -> (N, D), not yet of unit length."""
        x = self.pool(x)
        return x if self.projection is None else self.projection(x)

    def dense(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, rows, columns, D): every patch token through norm_post and projection, not of unit length.

        Only for pools "cls" and "avg", where patch tokens live in the pooled token's space.
        """
        if self.head is not None:
            raise ValueError(f"dense features need pool 'cls' or 'avg', this tower has {self.config.pool!r}")
        x = self.tokens(pixels)[:, int(self.config.class_token) :]
        if self.norm_post is not None:
            x = self.norm_post(x)
        if self.projection is not None:
            x = self.projection(x)
        return x.view(len(x), *self.config.grid, -1)


class TextTower(nn.Module):
    """Text transformer: token ids to one embedding per text."""

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        assert not (config.causal and config.mask_padding), "one mask or the other"
        self.config = config
        width = config.blocks.width
        self.embedding = nn.Embedding(config.vocab_size, width)
        ends = config.pool == "class"
        self.class_token = nn.Parameter(torch.randn(width) * 0.01) if ends else None
        self.position = nn.Parameter(torch.randn(config.context_length + int(ends), width) * 0.01)
        self.blocks = nn.ModuleList(Block(config.blocks, i) for i in range(config.blocks.layers))
        self.norm_final = nn.LayerNorm(width, eps=config.blocks.norm_eps)
        self.projection = (
            nn.Linear(width, embed_dim, bias=config.projection_bias) if config.projection else None
        )

    def pooled_position(self, input_ids: Tensor) -> Tensor:
        """(N, L) ids -> (N,) the position whose token stands for the text. Ties take the first."""
        if self.config.pool == "argmax":
            return input_ids.argmax(dim=-1)
        if self.config.pool == "eos":
            return (input_ids == self.config.eos_id).int().argmax(dim=-1)
        position = input_ids.shape[1] - 1 if self.config.pool == "last" else 0
        return torch.full((len(input_ids),), position, device=input_ids.device)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(N, L) integer ids, L <= context_length -> (N, D), not yet of unit length."""
        if self.class_token is not None:
            return self._with_class_token(input_ids)
        x = self.embedding(input_ids) + self.position[: input_ids.shape[1]]
        mask = None
        if self.config.mask_padding:
            mask = (input_ids != self.config.pad_id)[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask, self.config.causal)
        x = self.norm_final(x)
        x = x[torch.arange(len(x), device=x.device), self.pooled_position(input_ids)]
        return x if self.projection is None else self.projection(x)  # type: ignore[no-any-return]

    def _with_class_token(self, input_ids: Tensor) -> Tensor:
        """As CoCa was trained: padded to the full length, the class token last.

        Its mask of padding stands one position late, so that the first token of padding is attended to, and the class token
        by itself only behind a text of full length.
        """
        assert self.class_token is not None
        config = self.config
        ids = F.pad(input_ids, (0, config.context_length - input_ids.shape[1]), value=config.pad_id)
        x = torch.cat([self.embedding(ids), self.class_token.expand(len(ids), 1, -1)], dim=1) + self.position
        seen = F.pad(ids != config.pad_id, (1, 0), value=True)[:, None, None, :]
        if config.causal:
            seen = seen & seen.new_ones(x.shape[1], x.shape[1]).tril()
        for block in self.blocks:
            x = block(x, seen)
        x = self.norm_final(x[:, -1])
        return x if self.projection is None else self.projection(x)  # type: ignore[no-any-return]


class Clip(DualEncoder):
    """The towers that the config names, and the scale of their cosine."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.image = None if config.image is None else build_tower(config.image, config.embed_dim)
        self.text = None if config.text is None else build_tower(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0 if config.logit_bias else 1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if config.logit_bias else None

    def forward(self, pixels: Tensor, input_ids: Tensor) -> Tensor:
        """-> (N images, N texts) logits: scale * cosine (+ bias)."""
        image = F.normalize(self.encode_image(pixels), dim=-1)
        text = F.normalize(self.encode_text(input_ids), dim=-1)
        logits = self.logit_scale.exp() * image @ text.T
        return logits if self.logit_bias is None else logits + self.logit_bias
