"""Experts of a block that are alike become one.

*How alike*: 2 <f, g> / (|f|^2 + |g|^2) over the outputs f and g that two experts give on measured tokens, each token weighed by the
shares that it gives them. 1 for equal outputs only: a plain cosine would call an expert alike to its double, which no merged weight is.
Weights themselves say less: the same function has as many weights as its hidden units have orders.

*Aligned first*: the mean of two networks is none of both unless their hidden units stand in the same order. Experts that were
upcycled from one dense model do, those that were not are matched by what their units read and write (Ainsworth et al. 2022,
arXiv:2209.04836), the most alike pair first. The match is kept where its sum is above that of the order as it is.

*Merged*: weights are the mean by use (Li et al. 2023, arXiv:2310.01334). A row of the router is linear in the token, but what it should
say is not: the larger of both logits where a token took one expert, log(exp a + exp b) where it took both, whose shares then add. So the
row is the mean by use plus the least-squares correction towards that on the measured tokens (ridge, so that few tokens change little).
Shapes: W width, H hidden width, R tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.feed_forward import activate, chosen, gates

_RIDGE = 1e-3  # of the mean square of what the row reads
_TOKENS = 512  # that outputs are compared on


@dataclass(frozen=True)
class Expert:
    """One expert's weights, its row of the router, and how often it is chosen."""

    fc1_weight: Tensor  # (H, W)
    fc1_bias: Tensor  # (H,)
    fc2_weight: Tensor  # (W, H)
    fc2_bias: Tensor  # (W,)
    row: Tensor  # (W,) of the router
    use: float  # share of the tokens' choices
    activation: str
    of: tuple[int, ...]  # numbers of the experts that it was made of

    def parameters(self) -> dict[str, Tensor]:
        """By name in an `Mlp`."""
        names = [field.name for field in fields(self) if field.name.startswith("fc")]
        return {name.replace("_", "."): getattr(self, name) for name in names}

    def __call__(self, x: Tensor) -> Tensor:
        """(R, W) -> (R, W)."""
        hidden = activate(F.linear(x, self.fc1_weight, self.fc1_bias), self.activation)
        return F.linear(hidden, self.fc2_weight, self.fc2_bias)


def merge_alike(
    experts: Sequence[Expert], inputs: Tensor, k: int, *, keep: int = 1, above: float | None = None
) -> list[Expert]:
    """Merge the most alike pair, again and again.

    Args:
        experts: of one block, in its router's order; a merged one stands where its first part stood.
        inputs: (R, W) tokens as the block's feed-forward reads them.
        k: experts that a token takes.
        keep: stop at so many.
        above: stop at the first pair that is less alike; None: only `keep` counts.
    """
    left = list(experts)
    few = inputs[torch.linspace(0, len(inputs) - 1, min(_TOKENS, len(inputs))).long()]
    outputs = [expert(few) for expert in left]
    while len(left) > keep:
        alike = likeness(outputs, gates(few @ _rows(left).T, k))
        i, j = divmod(int(alike.argmax()), len(left))
        if above is not None and alike[i, j] < above:
            break
        i, j = min(i, j), max(i, j)
        left[i] = merge(left, i, j, inputs, k)
        outputs[i] = left[i](few)
        del left[j], outputs[j]
    return left


def likeness(outputs: Sequence[Tensor], shares: Tensor) -> Tensor:
    """(E, E) how alike the experts' outputs are, -1 to 1; -inf on the diagonal.

    Args:
        outputs: E of (R, W).
        shares: (R, E) what each token gives each expert; a pair that none gives anything to is compared on all alike.
    """
    count = len(outputs)
    found = torch.full((count, count), -torch.inf, dtype=torch.float64)
    sizes = [output.double().square().sum(dim=1) for output in outputs]
    for i in range(count):
        for j in range(i):
            weight = (shares[:, i] + shares[:, j]).double()
            weight = weight if weight.sum() > 0 else torch.ones_like(weight)
            both = (outputs[i].double() * outputs[j].double()).sum(dim=1)
            found[i, j] = found[j, i] = (
                2 * (weight @ both) / (weight @ (sizes[i] + sizes[j])).clamp_min(1e-30)
            )
    return found


def merge(experts: Sequence[Expert], i: int, j: int, inputs: Tensor, k: int) -> Expert:
    """One expert of two, in place of number i.

    Args:
        experts: all of the block, whose logits decide which tokens took which.
        i, j: the two to merge.
        inputs: (R, W) tokens.
        k: experts that a token takes.
    """
    a, b = experts[i], experts[j]
    total = a.use + b.use
    part = a.use / total if total else 0.5
    b = aligned(b, a)
    mean = {
        field.name: torch.lerp(getattr(b, field.name), getattr(a, field.name), part)
        for field in fields(Expert)
        if isinstance(getattr(a, field.name), Tensor)
    }
    found = replace(a, use=total, of=(*a.of, *b.of), **mean)  # type: ignore[arg-type]
    logits = inputs.double() @ _rows(experts).double().T
    taken = chosen(logits.float(), k)
    both = taken[:, i] & taken[:, j]
    wanted = torch.where(both, logits[:, [i, j]].logsumexp(dim=1), logits[:, [i, j]].amax(dim=1))
    return replace(found, row=_corrected(found.row, inputs, wanted))


def _corrected(row: Tensor, inputs: Tensor, wanted: Tensor) -> Tensor:
    """The row plus the least change by which it gives (R,) `wanted` on (R, W) inputs, up to the ridge."""
    x = inputs.double()
    square = x.T @ x
    ridge = _RIDGE * square.trace() / len(square)
    missing = wanted - x @ row.double()
    change = torch.linalg.solve(square + ridge * torch.eye(len(square), dtype=x.dtype), x.T @ missing)
    corrected: Tensor = (row.double() + change).to(row.dtype)
    return corrected


def aligned(expert: Expert, to: Expert) -> Expert:
    """The same function with its hidden units in the order of another expert's."""
    units = [
        torch.cat(
            [F.normalize(torch.cat([e.fc1_weight, e.fc1_bias[:, None]], 1)), F.normalize(e.fc2_weight.T)], 1
        )
        for e in (to, expert)
    ]
    alike = units[0] @ units[1].T  # (H, H) row: of `to`
    order = _matched(alike)
    lines = torch.arange(len(order))
    if alike[lines, order].sum() <= alike.diagonal().sum():
        return expert
    return replace(
        expert,
        fc1_weight=expert.fc1_weight[order], fc1_bias=expert.fc1_bias[order], fc2_weight=expert.fc2_weight[:, order],
    )  # fmt: skip


def _matched(alike: Tensor) -> Tensor:
    """(H, H) -> (H,) a column for each row, the most alike pair of those that are free first."""
    size = len(alike)
    order = torch.full((size,), -1)
    free = torch.ones(size, dtype=torch.bool)
    while bool((order < 0).any()):
        # each free row's best free column: of the rows that want the same one the most alike gets it
        rows = (order < 0).nonzero()[:, 0]
        columns = free.nonzero()[:, 0]
        best, where = alike[rows][:, columns].max(dim=1)
        for i in best.argsort(descending=True, stable=True).tolist():
            column = columns[where[i]]
            if free[column]:
                order[rows[i]], free[column] = column, False
    return order


def _rows(experts: Sequence[Expert]) -> Tensor:
    return torch.stack([expert.row for expert in experts])
