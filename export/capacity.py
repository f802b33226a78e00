"""How many tokens of one sample each expert takes in the form "capacity", measured on the samples of an export.

An expert that takes fewer tokens computes less, and drops the choices that find no place. Each expert of each block is given the fewest
tokens by which it drops no more than a share of what chose it: so none is starved because it is rarely wanted.
Shapes: N samples, E experts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeclip.bundle import Experts
from edgeclip.errors import InputError
from edgeclip.export.experts import TracedExperts
from edgeclip.export.routing import NEAR, Routing, margin

Array = NDArray[Any]
# Share of choices that may find no place. On 32 photographs, six blocks of four experts perturbed from one, top 2: 0.5 % dropped moves
# embeddings by a relative distance of 0.002 and takes 1.57 times the average; none 0 and 1.67, 2 % 0.019 and 1.42, 5 % 0.050 and 1.26.
DROP = 0.005
# Relative distance to the source above which the form is not written: twice what merging tokens may cost at the golden inputs.
MOST_LOST = 0.10


def check_drop(drop: float) -> None:
    """Raise InputError unless it is a share below one."""
    if not 0 <= drop < 1:
        raise InputError(f"--moe-drop: expected a share from 0 to below 1, got {drop}.")


def fewest(counts: Array, drop: float) -> int:
    """The smallest capacity by which at most a share `drop` of an expert's tokens finds no place.

    Args:
        counts: (N,) tokens of each sample that chose it.
    """
    wanted = int(counts.sum())
    for capacity in range(1, int(counts.max(initial=1))):
        if np.maximum(counts - capacity, 0).sum() <= drop * wanted:
            return capacity
    return max(int(counts.max(initial=1)), 1)  # a product of no rows is no product


def capacities(routing: Routing, drop: float) -> tuple[tuple[int, ...], ...]:
    """What each expert of each block takes of one sample, by block as in `Experts.blocks`."""
    return tuple(tuple(fewest(rows, drop) for rows in counts.T) for counts in routing.counts)


def room_for_all(routing: Routing) -> tuple[tuple[int, ...], ...]:
    """The same with nothing dropped on these samples."""
    return capacities(routing, 0.0)


def factor(experts: Experts, routing: Routing) -> float:
    """What the experts take of a sample, over what the average sample sends to them: 1 = only that, E/k = every token to every expert."""
    sent = sum(float(counts.sum(axis=1).mean()) for counts in routing.counts)
    return sum(sum(block) for block in experts.capacities) / sent


@dataclass
class Drops:
    """What a traceable tower in the form "capacity" dropped while it ran on the samples, in their order."""

    experts: Experts
    wanted: int = 0
    dropped: int = 0
    margins: list[dict[int, Array]] = field(default_factory=list)  # chunk -> block -> (n,)

    @property
    def share(self) -> float:
        """Of the choices, 0-1."""
        return self.dropped / max(self.wanted, 1)

    @property
    def near(self) -> Array:
        """(N,) bool: samples in which a rounding would send a token elsewhere, or drop another one."""
        return np.concatenate([np.min([*chunk.values()], axis=0) for chunk in self.margins]) < NEAR

    def add(self, place: int, module: TracedExperts, x: Tensor, live: Tensor | None = None) -> None:
        """Look at what enters one mixture, see TracedExperts; `place`: in `experts.blocks`."""
        if not self.margins or place in self.margins[-1]:
            self.margins.append({})
        logits, shares = module.router(x), module.shares(x)
        real = torch.ones_like(x[..., 0], dtype=torch.bool) if live is None else live[..., 0] > 0
        apart = margin(logits, module.top_k).masked_fill(~real, torch.inf).amin(dim=1)
        ordered = (shares * real[..., None]).sort(dim=1, descending=True).values  # (n, T', E)
        for i, capacity in enumerate(self.experts.capacities[place]):
            taken = (ordered[..., i] > 0).sum(dim=1)
            self.wanted += int(taken.sum())
            self.dropped += int((taken - capacity).clamp_min(0).sum())
            if capacity < x.shape[1]:  # the last that finds a place against the first that does not
                cut = ordered[:, capacity - 1, i] - ordered[:, capacity, i]
                apart = torch.minimum(apart, cut.masked_fill(taken <= capacity, torch.inf))
        self.margins[-1][place] = apart.numpy()


@contextlib.contextmanager
def dropping(module: nn.Module, experts: Experts) -> Iterator[Drops]:
    """Watch the mixtures of a traceable tower in the form "capacity" while it runs."""
    drops = Drops(experts)
    mixtures = [part for part in module.modules() if isinstance(part, TracedExperts)]
    assert len(mixtures) == len(experts.blocks)

    def watch(place: int, part: TracedExperts) -> Any:
        return part.register_forward_pre_hook(lambda _, inputs: drops.add(place, part, *inputs))

    handles = [watch(place, part) for place, part in enumerate(mixtures)]
    try:
        yield drops
    finally:
        for handle in handles:
            handle.remove()
