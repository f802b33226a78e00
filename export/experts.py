"""A mixture of experts as a graph: three forms, which differ in what they compute and in which engines take them.

"dense": every expert computes every token, and shares of 0 leave out what was not chosen. Exact; plain operators of fixed shape.
"gather": an expert computes the tokens that chose it. Exact; sizes depend on the data, which onnxruntime takes.
"capacity": an expert computes a fixed number of tokens of each sample, those with the largest shares (batch-prioritised routing,
Riquelme et al. 2021, arXiv:2106.05974, but never across samples: a vector does not depend on its neighbours). Fixed shapes, for TensorRT;
exact where no expert is chosen by more tokens than it takes.
Shapes: N batch, T tokens, W width, E experts, k those that a token takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from edgeclip.export.traced import Linear, TracedMlp
from edgeclip.models.feed_forward import Mlp, MoeMlp, chosen, ranks

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

    def forward(self, x: Tensor, live: Tensor | None = None) -> Tensor:
        """(N, T, W) -> (N, T, W).

        Args:
            live: (N, T, 1), 0 for tokens that nothing reads, which need not be computed; None: all are read.
        """
        shares = self.shares(x)
        return self.mix(x, shares if live is None else shares * live)

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
        return _added([expert(x) * shares[..., i : i + 1] for i, expert in enumerate(self.experts)])


def _added(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class GatherExperts(TracedExperts):
    """Every expert computes the tokens that chose it, none of them where no token did."""

    def mix(self, x: Tensor, shares: Tensor) -> Tensor:
        """As in the base. The experts' rows stand one behind the other, and each token takes its k from there: whole rows both ways.

        A running count of the choices, expert by expert, says where: nothing is sorted or scattered. A token that is not live
        takes any rows, by shares of 0.
        """
        flat, counts = x.flatten(0, 1), shares.flatten(0, 1)  # (M, W), (M, E)
        chose = counts.T > 0
        places = (chose.flatten().long().cumsum(0) - 1).clamp_min(0).view(chose.shape).T  # (M, E)
        parts = []
        for i, expert in enumerate(self.experts):
            (rows,) = torch.nonzero(chose[i], as_tuple=True)
            torch._check(rows.shape[0] >= 0)  # type: ignore[no-untyped-call]
            parts.append(expert(flat.index_select(0, rows)))
        outputs = torch.cat(parts)
        weights, best = counts.topk(self.top_k, dim=-1)  # of equal shares only those of 0 can be confused
        where = torch.gather(places, -1, best)  # (M, k)
        taken = [outputs.index_select(0, where[:, i]) * weights[:, i : i + 1] for i in range(self.top_k)]
        return _added(taken).view(x.shape)


class CapacityExperts(TracedExperts):
    """Every expert computes a fixed number of tokens of each sample: those with the largest shares of it.

    A token without a place at one of its experts takes the others' outputs by shares of sum 1; without any place, nothing is added to it.
    """

    def __init__(self, moe: MoeMlp, capacity: tuple[int, ...]) -> None:
        super().__init__(moe)
        if len(capacity) != len(self.experts) or min(capacity) < 1:
            raise ValueError(
                f"capacities {capacity}: expected 1 token or more for each of {len(self.experts)} experts"
            )
        self.capacity = capacity
        self.limits = nn.Buffer(torch.tensor(capacity, dtype=torch.int32)[:, None])  # (E, 1)

    def mix(self, x: Tensor, shares: Tensor) -> Tensor:
        """As in the base. Tokens are brought to their places and back by products with tables of 0 and 1: no engine lacks them."""
        places = ranks(shares.transpose(1, 2))  # (N, E, T)
        kept = shares.transpose(1, 2) * (places < self.limits)
        total = kept.sum(dim=1, keepdim=True)
        kept = kept / torch.where(total > 0, total, 1.0)
        order = torch.arange(x.shape[1], dtype=torch.int32)
        parts, tables = [], []
        for i, (expert, capacity) in enumerate(zip(self.experts, self.capacity, strict=True)):
            table = (places[:, i, None] == order[:capacity, None]).to(x.dtype)  # (N, C, T)
            parts.append(expert(table @ x))
            tables.append(table * kept[:, i, None])
        return torch.cat(tables, dim=1).transpose(1, 2) @ torch.cat(parts, dim=1)


# name -> (mixture, tokens that each expert takes of a sample; () where the form has no such limit) -> its traceable module
FORMS: Mapping[str, Callable[[MoeMlp, tuple[int, ...]], TracedExperts]] = {
    "dense": lambda moe, capacity: DenseExperts(moe),
    "gather": lambda moe, capacity: GatherExperts(moe),
    "capacity": CapacityExperts,
}


def traced_feed_forward(mlp: nn.Module, form: ExpertForm = DENSE, number: int = 0) -> nn.Module:
    """(N, T, W) -> (N, T, W): the traceable form of a block's feed-forward. `number`: of the block in its stack, from 0."""
    if isinstance(mlp, MoeMlp):
        return FORMS[form.name](mlp, form.capacities.get(number, ()))
    assert isinstance(mlp, Mlp)
    return TracedMlp(mlp)
