"""A mixture of experts as a graph: three forms, which differ in what they compute and in which engines take them.

"dense": every expert computes every token, and shares of 0 leave out what was not chosen. Exact; plain operators of fixed shape.
"gather": an expert computes the tokens that chose it. Exact; sizes depend on the data, which onnxruntime takes.
"capacity": an expert computes a fixed number of tokens of each sample, those with the largest shares. Fixed shapes, for TensorRT; exact
where no expert is chosen by more tokens than it takes.
Shapes: N batch, T tokens, W width, E experts, k those that a token takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from edgeclip.export.traced import Linear, TracedMlp
from edgeclip.models.feed_forward import Mlp, MoeMlp, chosen

FormName = Literal["dense", "gather", "capacity"]
# In place of a router's logit that was not chosen: its exponential is zero in every precision.
LEFT_OUT = -32752.0


@dataclass(frozen=True)
class ExpertForm:
    """How the mixtures of one tower are written."""

    name: FormName = "dense"
    # "capacity": block -> tokens that each of its experts takes of one sample
    capacities: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


DENSE = ExpertForm()


class TracedExperts(nn.Module):
    """A mixture's router and experts; a form says how `mix` computes."""

    def __init__(self, moe: MoeMlp) -> None:
        super().__init__()
        self.top_k = moe.top_k
        self.router = Linear(moe.router)
        self.experts = nn.ModuleList(TracedMlp(expert) for expert in moe.experts if isinstance(expert, Mlp))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, W) -> (N, T, W)."""
        return self.mix(x, self.shares(x))

    def shares(self, x: Tensor) -> Tensor:
        """(N, T, W) -> (N, T, E): what each expert counts for each token, 0 where it was not chosen."""
        logits = self.router(x)
        kept = torch.where(chosen(logits, self.top_k), logits, LEFT_OUT)
        shares: Tensor = kept.softmax(dim=-1)
        return shares

    def mix(self, x: Tensor, shares: Tensor) -> Tensor:
        """(N, T, W) and (N, T, E) -> (N, T, W): the experts' outputs, added by their shares."""
        raise NotImplementedError


class DenseExperts(TracedExperts):
    """Every expert computes every token."""

    def mix(self, x: Tensor, shares: Tensor) -> Tensor:
        """As in the base: E products of all tokens."""
        parts: list[Tensor] = [expert(x) * shares[..., i : i + 1] for i, expert in enumerate(self.experts)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


# name -> (mixture, tokens that each expert takes of a sample; () where the form has no such limit) -> its traceable module
FORMS: Mapping[str, Callable[[MoeMlp, tuple[int, ...]], TracedExperts]] = {
    "dense": lambda moe, capacity: DenseExperts(moe),
}


def traced_feed_forward(mlp: nn.Module, form: ExpertForm = DENSE, number: int = 0) -> nn.Module:
    """(N, T, W) -> (N, T, W): the traceable form of a block's feed-forward. `number`: of the block in its stack, from 0."""
    if isinstance(mlp, MoeMlp):
        return FORMS[form.name](mlp, form.capacities.get(number, ()))
    assert isinstance(mlp, Mlp)
    return TracedMlp(mlp)
