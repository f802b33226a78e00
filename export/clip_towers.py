"""Traceable towers of the canonical CLIP.

What differs from the source's own forward, none of which changes the function: the softmax scale is folded into the query
weights; weights are stored as MatMul reads them; the last block computes only the token that is pooled (its keys and values
still see every token), a twelfth of three quarters of a 12-block tower; an attention pool's learned query is computed once.
Shapes: N batch, T tokens, W width, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.export.experts import DENSE, ExpertForm, GatherExperts, TracedExperts, traced_feed_forward
from edgeclip.export.traced import Linear, TracedMlp
from edgeclip.models.clip import AttentionalPooler, Block, ImageTower, MapHead, TextTower

# Added to the score of a position that may not be attended to. Half of fp16's lowest finite value: no score added to it
# overflows in any precision, and its exponential is zero in all of them.
MASKED = -32752.0

Rows = Callable[[Tensor], Tensor]  # (N, T, W) -> (N, 1, W): the token that is pooled


def image_tower(tower: ImageTower, form: ExpertForm = DENSE) -> tuple[nn.Module, dict[str, int]]:
    """-> (pixels (N, 3, H, W) -> (N, D), expected operators). `form`: how experts are written, where there are any."""
    traceable = TracedImage(tower, form)
    means = int(tower.config.pool in ("avg", "attentional_avg"))
    return traceable, {**expected(traceable, tower.config.blocks.layers), "ReduceMean": means}


def text_tower(tower: TextTower, form: ExpertForm = DENSE) -> tuple[nn.Module, dict[str, int]]:
    """-> (input_ids (N, L) int32 -> (N, D), expected operators)."""
    traceable = (ClassText if tower.config.pool == "class" else Text)(tower, form)
    return traceable, expected(traceable, tower.config.blocks.layers)


def expected(tower: nn.Module, layers: int) -> dict[str, int]:
    """What the graph of a tower made of these modules must hold: an operator a norm, a product a linear layer."""
    kinds = (nn.LayerNorm, Linear, Attend, TracedExperts)
    counts = {kind: sum(isinstance(m, kind) for m in tower.modules()) for kind in kinds}
    gathered = [len(module.experts) for module in tower.modules() if isinstance(module, GatherExperts)]
    return {
        "LayerNormalization": counts[nn.LayerNorm],
        "linears": counts[Linear],  # four a block: q, k and v are one; of experts two each, and a router
        "attentions": counts[Attend],
        "mixtures": counts[TracedExperts],
        "NonZero": sum(gathered),  # one an expert: nothing else may have a size that depends on the data
        "fused_qkv": layers,
    }


class Attend(nn.Module):
    """Softmax of query-key products (the scale is in q already), times the values."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def split(self, x: Tensor) -> Tensor:
        """(N, T, W) -> (N, h, T, d)."""
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend. attention.py knows this form, and writes it as the operator.

        Args:
            q: (N, h, Q, d), or (1, h, Q, d) for queries that are the same for every row.
            k, v: (N, T, W).
            mask: additive: (T, T) if it is the causal one, else (N, 1, Q or 1, T).
        Returns:
            (N, Q, W).
        """
        return self.heads_joined(q, self.split(k), self.split(v), mask)

    def heads_joined(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The same, of keys and values that are split into heads already: (N, h, T, d) -> (N, Q, W)."""
        scores = q @ k.transpose(-1, -2)
        y = torch.softmax(scores if mask is None else scores + mask, dim=-1) @ v
        return y.transpose(1, 2).flatten(2)


def attention_bias(size: Tensor | None) -> Tensor | None:
    """(N, T, 1) patches that each token stands for -> (N, 1, 1, T): a mask by which a token of n counts as n did."""
    return None if size is None else size.log().transpose(1, 2)[:, None]


class TracedBlock(nn.Module):
    """A residual block; with `rows`, only for the token that `rows` takes."""

    def __init__(self, block: Block, form: ExpertForm = DENSE, number: int = 0) -> None:
        """`form`: how experts are written; `number`: of the block in its stack, from 0."""
        super().__init__()
        heads, width = block.attention.heads, block.attention.out.in_features
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv = Linear(block.attention.qkv, scaled=width, scale=(width // heads) ** -0.5)
        self.attend = Attend(heads)
        self.out = Linear(block.attention.out)
        self.mlp = traced_feed_forward(block.mlp, form, number)

    def forward(
        self, x: Tensor, mask: Tensor | None, rows: Rows | None, live: Tensor | None = None
    ) -> Tensor:
        """`live`: tokens that are read later on, see TracedExperts; of no use with `rows`."""
        x = self.attended(x, mask, rows)
        y = self.norm2(x)
        if live is not None and isinstance(self.mlp, TracedExperts):
            return x + self.mlp(y, live)  # type: ignore[no-any-return]
        return x + self.mlp(y)  # type: ignore[no-any-return]

    def attended(self, x: Tensor, mask: Tensor | None, rows: Rows | None) -> Tensor:
        """x + attention(norm1(x)): what enters the feed-forward half."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        if rows is not None:
            q, x = rows(q), rows(x)
        return x + self.out(self.attend(self.attend.split(q), k, v, mask))  # type: ignore[no-any-return]


def _blocks(tower: ImageTower | TextTower, form: ExpertForm) -> nn.ModuleList:
    return nn.ModuleList(
        TracedBlock(block, form, i) for i, block in enumerate(tower.blocks) if isinstance(block, Block)
    )


class PoolHead(nn.Module):
    """Learned queries attend to all tokens: SigLIP's head and OpenCLIP's pooler."""

    def __init__(self, head: MapHead | AttentionalPooler) -> None:
        super().__init__()
        linears: tuple[nn.Linear, ...]
        with torch.no_grad():
            if isinstance(head, MapHead):
                queries, linears = head.q(head.probe), (head.kv,)
            else:
                queries, linears = head.q(head.norm_q(head.query))[None], (head.k, head.v)
        self.norm_k = None if isinstance(head, MapHead) else head.norm_k
        self.norm = head.norm if isinstance(head, MapHead) else None
        self.mlp = TracedMlp(head.mlp) if isinstance(head, MapHead) else None
        self.attend = Attend(head.heads)
        q = self.attend.split(queries) * (queries.shape[-1] // head.heads) ** -0.5
        self.q = nn.Parameter(q.contiguous(), requires_grad=False)  # (1, h, Q, d)
        self.kv, self.out = Linear(*linears), Linear(head.out)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, T, W) -> (N, Q, W'). `mask`: see Attend."""
        k, v = self.kv(x if self.norm_k is None else self.norm_k(x)).chunk(2, dim=-1)
        y: Tensor = self.out(self.attend(self.q, k, v, mask))
        if self.mlp is not None and self.norm is not None:
            y = y + self.mlp(self.norm(y))
        return y


def _positions(tower: ImageTower) -> nn.Parameter | None:
    """(T, W) added to the patches behind a row of zeros, which the class token fills: no Expand to the batch's size."""
    position, token = tower.position, tower.class_token
    if token is None:
        return position
    rows = tower.patches.weight.new_zeros(tower.config.tokens, len(token)) if position is None else position
    added = rows.detach().clone()
    added[0] += token.detach()
    return nn.Parameter(added, requires_grad=False)


class TracedImage(nn.Module):
    """The image tower; `tokens` alone is its dense form."""

    def __init__(self, tower: ImageTower, form: ExpertForm = DENSE) -> None:
        super().__init__()
        self.config = tower.config
        self.patches, self.norm_pre, self.norm_post = tower.patches, tower.norm_pre, tower.norm_post
        self.position = _positions(tower)
        self.blocks = _blocks(tower, form)
        self.head = None if tower.head is None else PoolHead(tower.head)
        self.projection = None if tower.projection is None else Linear(tower.projection)

    def _embedded(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, T, W): what enters the first block."""
        x: Tensor = self.patches(pixels).flatten(2).transpose(1, 2)
        if self.config.class_token:
            x = F.pad(x, (0, 0, 1, 0))
        x = x + self.position if self.position is not None else x
        return x if self.norm_pre is None else self.norm_pre(x)

    def tokens(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, T, W): every token after the last block, before norm_post."""
        x = self._embedded(pixels)
        for block in self.blocks:
            x = block(x, None, None)
        return x

    def forward(self, pixels: Tensor) -> Tensor:
        x = self._embedded(pixels)
        only = (lambda tokens: tokens[:, :1]) if self.config.pool == "cls" else None
        for i, block in enumerate(self.blocks, 1):
            x = block(x, None, only if i == len(self.blocks) else None)
        x = self._pool(x)
        return x if self.projection is None else self.projection(x)

    def _pool(self, x: Tensor, size: Tensor | None = None) -> Tensor:
        """(N, T, W) -> (N, W), by the config's rule: the order of norm and pool is the source's own.

        Args:
            size: (N, T, 1) patches that each token stands for; None: one each.
        """
        config = self.config
        if self.norm_post is not None and not config.norm_after_pool:
            x = self.norm_post(x)
        if self.head is not None:
            x = self.head(x, attention_bias(size))
            if config.pool == "map":
                x = x[:, 0]
        elif config.pool == "cls":
            x = x[:, 0]
        elif size is None:
            x = x[:, int(config.class_token) :].mean(dim=1)
        else:
            patches = config.tokens - int(config.class_token)
            x = (x * size)[:, int(config.class_token) :].sum(dim=1) / patches
        if self.norm_post is not None and config.norm_after_pool:
            x = self.norm_post(x)
        if config.pool == "attentional":
            return x[:, 0]
        return x[:, 1:].mean(dim=1) if config.pool == "attentional_avg" else x


class Text(nn.Module):
    """The text tower."""

    def __init__(self, tower: TextTower, form: ExpertForm = DENSE) -> None:
        super().__init__()
        self.config = tower.config
        self.embedding, self.position = tower.embedding, tower.position
        self.blocks = _blocks(tower, form)
        self.norm_final = tower.norm_final
        self.projection = None if tower.projection is None else Linear(tower.projection)
        length = tower.config.context_length
        later = torch.ones(length, length).triu(1) * MASKED  # row = query
        self.later = nn.Buffer(later) if tower.config.causal else None
        self.order = nn.Buffer(torch.arange(length).float())

    def forward(self, input_ids: Tensor) -> Tensor:
        x, mask, last_mask, pooled = self._entered(input_ids)
        live = self.live(input_ids)
        for i, block in enumerate(self.blocks, 1):
            x = block(x, mask, None, live) if i < len(self.blocks) else block(x, last_mask, pooled)
        last: Tensor = self.norm_final(x)[:, 0]
        return last if self.projection is None else self.projection(last)

    def _entered(self, input_ids: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Rows]:
        """(N, L) -> what enters the first block: tokens, their mask, that of the pooled query, and what takes the pooled token."""
        length = input_ids.shape[1]
        x = self.embedding(input_ids) + self.position[:length]
        position = self._pooled(input_ids)  # (N,)
        mask = last_mask = None
        if self.later is not None:
            mask = self.later[:length, :length]
            last_mask = mask.index_select(0, position)[
                :, None, None, :
            ]  # (N, 1, 1, L): the pooled query's row
        elif self.config.mask_padding:
            mask = last_mask = ((input_ids == self.config.pad_id).float() * MASKED)[:, None, None, :]

        def pooled(tokens: Tensor) -> Tensor:
            where = position[:, None, None].expand(-1, 1, tokens.shape[-1])
            return torch.gather(tokens, 1, where)

        return x, mask, last_mask, pooled

    def live(self, input_ids: Tensor) -> Tensor | None:
        """(N, L) -> (N, L, 1): 0 for tokens that the pooled one cannot see, directly or through others; None: it sees all."""
        order = self.order[: input_ids.shape[1]]
        own = self._pooled(input_ids).float()[:, None]
        if self.later is not None:
            return (order <= own).float()[..., None]
        if self.config.mask_padding:  # what is pooled is computed even where it is padding
            seen = torch.maximum((input_ids != self.config.pad_id).float(), (order == own).float())
            return seen[..., None]
        return None

    def _pooled(self, input_ids: Tensor) -> Tensor:
        """(N, L) -> (N,) the position that stands for the text.

        The first of several candidates by arithmetic, not by how an engine's ArgMax breaks ties; in float32, which holds
        every id below 2**24, because not every engine has an ArgMax of integers.
        """
        config, order = self.config, self.order[: input_ids.shape[1]]
        ids = input_ids.float()
        if config.pool in ("last", "first"):
            return (ids * 0 + (order if config.pool == "last" else -order)).argmax(dim=-1)
        wanted = ids.amax(dim=-1, keepdim=True) if config.pool == "argmax" else config.eos_id
        return ((ids == wanted).float() * (2 * config.context_length) - order).argmax(dim=-1)


class ClassText(Text):
    """The text tower of CoCa, at any length.

    At full length its class token attends to the text and to one token of padding (see models/clip.py); here it stands behind
    one that every text gets, which gives the same for less. A text of full length has none: then it sees itself instead.
    """

    def __init__(self, tower: TextTower, form: ExpertForm = DENSE) -> None:
        super().__init__(tower, form)
        config = tower.config
        assert tower.class_token is not None
        self.class_token = tower.class_token
        self.padding = nn.Parameter(tower.embedding.weight[config.pad_id].clone(), requires_grad=False)
        length = config.context_length
        order = torch.arange(length + 2)
        self.later = nn.Buffer((order > order[:, None]).float()) if config.causal else None  # row = query
        self.none = nn.Buffer(torch.zeros(length))
        self.full = nn.Buffer(
            (order[:length] == length - 1).float()
        )  # at L - 1: whether L is the full length

    def _entered(self, input_ids: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Rows]:
        """As in the base: L tokens of text, one of padding, the class token."""
        n, length = input_ids.shape
        ends = [token.expand(n, 1, -1) for token in (self.padding, self.class_token)]
        x = torch.cat([self.embedding(input_ids), *ends], dim=1)
        x = x + torch.cat([self.position[: length + 1], self.position[-1:]])
        hidden = self._hidden(input_ids)[:, None, None, :]  # (N, 1, 1, L + 2)
        mask = hidden
        if self.later is not None:
            mask = torch.maximum(hidden, self.later[: length + 2, : length + 2])
        return x, mask * MASKED, hidden * MASKED, lambda tokens: tokens[:, -1:]

    def live(self, input_ids: Tensor) -> Tensor | None:
        """(N, L) -> (N, L + 2, 1): the keys that are attended to, and the class token, which is pooled."""
        seen = 1 - self._hidden(input_ids)[:, :-1]
        return torch.cat([seen, seen[:, :1] * 0 + 1], dim=1)[..., None]

    def _hidden(self, input_ids: Tensor) -> Tensor:
        """(N, L) -> (N, L + 2): 1 for a key that nothing attends to, position by position one late, as trained."""
        length = input_ids.shape[1]
        padding = (input_ids == self.config.pad_id).float()
        late = torch.cat([padding[:, :1] * 0, padding, padding[:, -1:]], dim=1)
        full = self.full[length - 1 : length]
        return torch.maximum(late, torch.cat([self.none[:length], full, 1 - full]))
