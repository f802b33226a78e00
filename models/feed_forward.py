"""The feed-forward of a transformer's block: one for every token, or experts of which each token takes its best few.

Shapes: N batch, T tokens, W width, H hidden width, E experts, k those that a token takes.
Source: Shazeer et al. 2017, arXiv:1701.06538; as CLIP-MoE routes it (Zhang et al. 2024, arXiv:2409.19291): a linear router without
bias, softmax over the chosen logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.models.config import TransformerConfig


def activate(x: Tensor, name: str) -> Tensor:
    """Apply a feed-forward activation by its config name. QuickGELU is x * sigmoid(1.702 x), OpenAI's approximation."""
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(activate(self.fc1(x), self.activation))  # type: ignore[no-any-return]


def ranks(values: Tensor) -> Tensor:
    """(..., E) -> (..., E) int32: how many entries come before each, largest first; of equal ones the lower index comes first.

    By comparison, not by sorting, in the model and in its graphs alike: engines differ in how they order equal values, and whole
    numbers are exact in every precision.
    """
    order = torch.arange(values.shape[-1], dtype=torch.int32, device=values.device)
    own, other = values[..., :, None], values[..., None, :]
    tied = (other == own) & (order < order[:, None])  # row = own
    return ((other > own).int() + tied.int()).sum(dim=-1, dtype=torch.int32)


def chosen(logits: Tensor, k: int) -> Tensor:
    """(..., E) router logits -> (..., E) bool: the k largest, see `ranks`."""
    return ranks(logits) < k


def gates(logits: Tensor, k: int) -> Tensor:
    """(..., E) router logits -> (..., E) float32 shares: softmax over the k largest, 0 elsewhere."""
    logits = logits.float()
    return logits.masked_fill(~chosen(logits, k), -torch.inf).softmax(dim=-1)


class MoeMlp(nn.Module):
    """Experts, each an Mlp, and the router that gives every token to its best `top_k`, whose outputs are added by their shares.

    The router runs in float32, under autocast too.
    """

    def __init__(self, width: int, hidden: int, activation: str, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = min(top_k, experts)
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(Mlp(width, hidden, activation) for _ in range(experts))
        self.dropout = 0.0  # of hidden activations, in training: CLIP-MoE's 0.1 while routers learn
        self.recorder: Recorder | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W), each token by itself."""
        logits = self.logits(x)
        shares = gates(logits, self.top_k)
        if self.recorder is not None:
            self.recorder.add(self, logits, shares)
        flat, shares = x.reshape(-1, x.shape[-1]), shares.reshape(-1, shares.shape[-1])
        y = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            (rows,) = torch.nonzero(shares[:, i], as_tuple=True)
            out = self._expert(expert, flat[rows]) * shares[rows, i, None].to(flat.dtype)
            y.index_add_(
                0, rows, out.to(y.dtype)
            )  # no rows at all too: an expert without a token still has a gradient, 0
        return y.view_as(x)

    def logits(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., E) float32."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.router.weight.float())

    def _expert(self, expert: nn.Module, x: Tensor) -> Tensor:
        if not (self.training and self.dropout):
            out: Tensor = expert(x)
            return out
        assert isinstance(expert, Mlp)
        hidden = F.dropout(activate(expert.fc1(x), expert.activation), self.dropout)
        return expert.fc2(hidden)  # type: ignore[no-any-return]


def feed_forward(config: TransformerConfig, block: int) -> Mlp | MoeMlp:
    """The feed-forward of a stack's block number `block`, from 0."""
    sizes = config.width, config.mlp_width, config.activation
    moe = config.moe
    if moe is None or not moe.experts[block]:
        return Mlp(*sizes)
    return MoeMlp(*sizes, moe.experts[block], moe.top_k)


@dataclass
class Recorder:
    """What routers said while a model ran: one entry for each call of a MoeMlp, in their order."""

    layers: list[MoeMlp] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)  # (N, T, E) float32
    shares: list[Tensor] = field(default_factory=list)  # (N, T, E) float32, 0 where an expert was not chosen
    _outer: dict[MoeMlp, Recorder] = field(
        default_factory=dict, repr=False
    )  # who listened before, and still does

    def add(self, layer: MoeMlp, logits: Tensor, shares: Tensor) -> None:
        """Keep one call's."""
        self.layers.append(layer)
        self.logits.append(logits)
        self.shares.append(shares)
        if layer in self._outer:
            self._outer[layer].add(layer, logits, shares)


def moe_layers(model: nn.Module) -> dict[str, MoeMlp]:
    """The mixtures of a model or tower by name, e.g. "image.blocks.3.mlp", in their order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MoeMlp)}


@contextlib.contextmanager
def recorded(model: nn.Module) -> Iterator[Recorder]:
    """Record what every router of `model` says within the block, and within blocks inside it."""
    layers = list(moe_layers(model).values())
    outer = {layer: layer.recorder for layer in layers}
    recorder = Recorder(_outer={layer: other for layer, other in outer.items() if other is not None})
    for layer in layers:
        layer.recorder = recorder
    try:
        yield recorder
    finally:
        for layer in layers:
            layer.recorder = outer[layer]
