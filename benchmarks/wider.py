"""A dense model with wider feed-forwards that computes what the narrow one did: the dense peer of a mixture's activated parameters.

W width, H hidden width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgeclip.models.clip import Clip
from edgeclip.models.source import Source

NOISE = (
    0.02  # of a copy's incoming weights, as a share of their spread: copies that are equal would stay equal
)


@torch.no_grad()
def wider(source: Source, times: int = 2, *, noise: float = NOISE, seed: int = 0) -> Source:
    """Every hidden unit `times` over, each with its share of the outgoing weights; the copies with a little noise on the incoming ones.

    Args:
        source: a dense CLIP; shares no tensor with the result.
        noise: standard deviation, as a share of the weights' own. 0: the same function, to rounding.
    Source: the idea is Net2WiderNet's, Chen et al. 2016, arXiv:1511.05641.
    """
    model = source.model
    assert isinstance(model, Clip)
    config: Any = model.config
    for tower in ("image", "text"):
        one = getattr(config, tower)
        blocks = replace(one.blocks, mlp_width=one.blocks.mlp_width * times)
        config = replace(config, **{tower: replace(one, blocks=blocks)})
    made = Clip(config)
    generator = torch.Generator().manual_seed(seed)

    def grown(name: str, value: Tensor) -> Tensor:
        if ".mlp." not in name:
            return value.clone()
        if name.endswith("fc1.weight"):  # (H, W)
            copies = [value] * (times - 1)
            shaken = [
                copy + noise * value.std() * torch.randn(value.shape, generator=generator) for copy in copies
            ]
            return torch.cat([value, *shaken])
        if name.endswith("fc1.bias"):
            return value.repeat(times)
        return value.repeat(1, times) / times if name.endswith("fc2.weight") else value.clone()

    made.load_state_dict({name: grown(name, value) for name, value in model.state_dict().items()})
    return replace(source, model=made.requires_grad_(False).eval(), digest="")
