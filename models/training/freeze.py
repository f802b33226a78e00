"""Which weights a run leaves as they are, and how many of the others' changes it ships."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from edgeclip.errors import TrainingError
from edgeclip.models.source import DualEncoder
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.settings import nearest


def freeze(model: DualEncoder, recipe: Recipe) -> None:
    """Switch training off for the parts that `frozen` names, for what no pattern of `trained` matches, and for the image tower
    before its last `last_blocks` blocks.

    Raises:
        TrainingError: no parameter is called so or matches, the tower has fewer blocks or none, or nothing would be trained.
    """
    names = [name for name, _ in model.named_parameters()]
    parts = dict.fromkeys(name.rsplit(".", i)[0] for name in names for i in range(name.count(".") + 1))
    for part in recipe.frozen:
        if part not in parts:
            raise TrainingError(
                f"frozen: the model has no part {part!r}{nearest(part, parts)} E.g. text, image.patches."
            )
    for name, parameter in model.named_parameters():
        if any(name == part or name.startswith(f"{part}.") for part in recipe.frozen):
            parameter.requires_grad_(False)
    for pattern in recipe.trained:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise TrainingError(
                f"trained: no parameter's name matches {pattern!r}. They are like {names[0]} and {names[-1]}; * stands for anything."
            )
    if recipe.trained:
        for name, parameter in model.named_parameters():
            if not any(fnmatchcase(name, pattern) for pattern in recipe.trained):
                parameter.requires_grad_(False)
    if recipe.last_blocks:
        _freeze_front(model, recipe.last_blocks)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            "frozen: nothing is left to be trained. Name fewer parts, or more of them in trained."
        )


def _freeze_front(model: DualEncoder, last: int) -> None:
    tower: Any = model.image
    blocks = getattr(tower, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or last > len(blocks):
        count = f"{len(blocks)} blocks" if isinstance(blocks, nn.ModuleList) else "no blocks"
        raise TrainingError(
            f"last_blocks: the image tower has {count}, got {last}. Set 0 to train all of it."
        )
    behind = (*blocks[len(blocks) - last :], tower.norm_post, tower.head, tower.projection)
    trained = {id(p) for part in behind if part is not None for p in part.parameters()}
    for parameter in tower.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)


@torch.no_grad()
def ensemble(model: nn.Module, start: nn.Module, share: float) -> None:
    """Set every weight of `model` to share x its own + (1 - share) x that of `start`.

    Source: Wortsman et al. 2022 (WiSE-FT), arXiv:2109.01903.
    """
    first = start.state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.lerp(first[name].to(value), value, share))
