"""The optimizer, its schedule, and the averaged copy of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from edgeclip.models.training.muon import Muon, matrices
from edgeclip.models.training.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """AdamW or Muon; either decays matrices and kernels only: not biases, norms, the scale, nor class tokens.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; the exceptions as in Radford et al. 2021, section 2.5.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.epsilon)
    turned = matrices(model)
    ids = {id(p) for p in turned}
    groups = [
        {**g, "params": [p for p in g["params"] if id(p) not in ids], "orthogonal": False} for g in groups
    ]
    groups.append({"params": turned, "weight_decay": recipe.weight_decay, "orthogonal": True})
    return Muon(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.epsilon)


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


# name -> share of the learning rate at a progress of 0-1 after warm-up
SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "constant": lambda progress: 1.0}


def learning_rate(recipe: Recipe, step: int) -> float:
    """Of the step `step`, counted from 0: rises in even parts to the full rate at the last warm-up step, then follows the schedule.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
    """
    full, warmup, schedule = recipe.learning_rate, recipe.warmup_steps, SCHEDULES[recipe.schedule]
    rest = max(1, recipe.steps - warmup)
    return full * (step + 1) / warmup if step < warmup else full * schedule((step - warmup) / rest)


class AveragedCopy:
    """The exponential moving average of a model's weights and running statistics: what is scored and shipped.

    Early on the average is short, min(decay, (1 + steps) / (10 + steps)), so that the start is forgotten.
    Source: Polyak and Juditsky 1992; the ramp is TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """`steps`: optimizer steps done before this one."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        mine = self.model.state_dict()
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                mine[name].lerp_(value, 1 - decay)
            else:
                mine[name].copy_(value)
