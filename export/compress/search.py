"""Which layers stay in float: how much each costs when it alone is converted, then as few as the budget allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Layers = frozenset[str]
# How many groups are converted alone, each a conversion and a few runs (4 s for a ViT-B on two cores): first so many of the whole
# graph, then the layers of the worst few by themselves, where which one it is matters.
COARSE, WORST = 12, 3


@dataclass(frozen=True)
class Group:
    """Layers that are converted, or left, together."""

    layers: tuple[str, ...]
    parameters: int  # what converting them saves, in bytes and, tokens being the same, in time
    distance: float = 0.0  # relative distance with only this group converted

    @property
    def worth(self) -> float:
        """Fidelity that comes back for each weight left in float; errors of different layers add up as squares."""
        return self.distance**2 / self.parameters


def sensitivities(layers: Sequence[tuple[str, int]], measure: Callable[[Group], Group]) -> list[Group]:
    """Groups of layers with their distances, in the order in which they are best left in float.

    Args:
        layers: (name, parameters) in the graph's order.
        measure: fills in a group's distance; called COARSE times, and once for each layer of the WORST groups.
    """
    groups = order_of([measure(group) for group in group_layers(layers, COARSE)])
    sizes = dict(layers)
    split = [group for group in groups[:WORST] if len(group.layers) > 1]
    singles = [measure(Group((name,), sizes[name])) for group in split for name in group.layers]
    return order_of([*singles, *(group for group in groups if group not in split)])


def group_layers(layers: Sequence[tuple[str, int]], most: int) -> list[Group]:
    """Neighbours in the graph's order, in at most `most` groups of like length."""
    each = max(1, -(-len(layers) // most))
    chunks = [layers[i : i + each] for i in range(0, len(layers), each)]
    return [Group(tuple(name for name, _ in chunk), sum(size for _, size in chunk)) for chunk in chunks]


def order_of(groups: Sequence[Group]) -> list[Group]:
    """Those first that give most back when they are left in float."""
    return sorted(groups, key=lambda group: -group.worth)


def left_of(order: Sequence[Group], count: int) -> Layers:
    """The layers of the first `count` groups."""
    return frozenset(name for group in order[:count] for name in group.layers)


def fewest(total: int, measure: Callable[[int], T], fits: Callable[[T], bool]) -> tuple[int, T] | None:
    """The fewest groups to leave in float so that the result fits, by bisection along their order.

    Args:
        total: groups there are. Leaving none is known not to fit, leaving all is float itself and not tried.
        measure: the result with so many left, from 1 to total - 1; called about log2(total) times.
    Returns:
        how many, and the result; None: none fits while anything is converted.
    """
    low, high, best = 0, total, None
    while high - low > 1:
        middle = (low + high) // 2
        result = measure(middle)
        if fits(result):
            high, best = middle, (middle, result)
        else:
            low = middle
    return best
