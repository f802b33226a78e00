"""Muon: momentum whose direction is made orthogonal, for the weights of linear and convolution layers; AdamW for the rest.

On nano's towers, at a learning rate of 8e-3, it came to the loss of AdamW at 2e-3 in about half the steps. At AdamW's own 2e-3
it gained nothing in 80 steps, and AdamW at 8e-3 was not tried: how much is the optimizer's and how much the rate's is not known.
Sources: Jordan et al. 2024, kellerjordan.github.io/posts/muon; the scale of the step, with which AdamW's learning rate and
decay serve unchanged: Liu et al. 2025, arXiv:2502.16982, section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = 0.95
# Newton-Schulz: so many steps of a quintic that draws all singular values into 0.7 to 1.2.
STEPS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
RMS = 0.2  # of an update's elements at learning rate 1: AdamW's usual size


def matrices(model: nn.Module) -> list[Tensor]:
    """The weights that have a direction to make orthogonal: of linear and convolution layers, unless they are one row."""
    weights = (module.weight for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    return [weight for weight in weights if weight.requires_grad and min(weight.flatten(1).shape) > 1]


class Muon(Optimizer):
    """Groups with `orthogonal=True` take Muon's step, the others AdamW's; both read `lr` and `weight_decay`.

    Args:
        groups: dicts of params, weight_decay and orthogonal.
        betas, eps: AdamW's.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None, "a closure would be evaluated with other weights"
        for group in self.param_groups:
            move = self._orthogonal if group["orthogonal"] else self._adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    move(parameter, parameter.grad, self.state[parameter], group)

    @staticmethod
    def _orthogonal(
        parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(MOMENTUM).add_(gradient)
        direction = gradient.add(state["momentum"], alpha=MOMENTUM).flatten(1)  # Nesterov's
        size = RMS * math.sqrt(max(direction.shape))
        parameter.add_(orthogonalised(direction).view_as(parameter), alpha=-group["lr"] * size)

    @staticmethod
    def _adamw(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not state:
            state.update(
                step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter)
            )
        first, second = group["betas"]
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        mean = state["mean"] / (1 - first ** state["step"].item())
        square = state["square"] / (1 - second ** state["step"].item())
        parameter.addcdiv_(mean, square.sqrt() + group["eps"], value=-group["lr"])


def orthogonalised(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, roughly: singular values end between 0.7 and 1.2. (R, C) -> (R, C).

    The iteration is run on X X^T, whose side is the shorter one; all of its polynomials commute. A 3x3 convolution's costs 0.25 to 0.4
    of what it does on X itself.
    """
    a, b, c = QUINTIC
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = wide / (wide.norm() + 1e-7)
    square, identity = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    total = identity
    for left in reversed(range(STEPS)):
        step = a * identity + b * square + c * square @ square
        total = step @ total
        if left:
            square = step @ square @ step
    found = total @ x
    return found.T if matrix.shape[0] > matrix.shape[1] else found
