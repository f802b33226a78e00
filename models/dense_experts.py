"""A mixture of experts as a dense model: each block is left with one feed-forward, a mean of its experts or one of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch

from edgeclip.errors import InputError
from edgeclip.models.clip import Clip
from edgeclip.models.config import ClipConfig
from edgeclip.models.expert_use import Tower, expert_use, towers_with_experts
from edgeclip.models.fewer_experts import check_mixtures, merged
from edgeclip.models.importance import PairSamples
from edgeclip.models.source import Source

MEAN = "mean"


def one_expert(source: Source, which: str, samples: PairSamples | None = None) -> Source:
    """A dense model of the same sizes. It shares no tensor with `source`.

    Args:
        which: "mean", or an expert's number from 0; a block with fewer takes its last.
        samples: pictures and texts on which use is measured, so that a mean counts each expert by how often it is chosen, with hidden
            units in one order; None: a plain mean.
    Raises:
        InputError: the model has no mixture, or no expert of that number.
    """
    layers = check_mixtures(source)
    most = max(len(layer.experts) for layer in layers.values())
    if which != MEAN and not (which.isdecimal() and int(which) < most):
        raise InputError(f"dense:{which}: expected mean, or an expert's number from 0 to {most - 1}.")
    if which == MEAN and samples is not None:
        given: dict[Tower, torch.Tensor] = {"image": samples.pixels, "text": samples.input_ids}
        seen = expert_use(source.model, {tower: given[tower] for tower in towers_with_experts(source.model)})
        return merged(source, seen, keep=1).source
    old: Any = source.model
    config: ClipConfig = old.config
    for name in ("image", "text"):
        tower: Any = getattr(config, name)
        if getattr(getattr(tower, "blocks", None), "moe", None) is not None:
            config = replace(config, **{name: replace(tower, blocks=replace(tower.blocks, moe=None))})
    state = {
        key: value.detach().clone()
        for key, value in old.state_dict().items()
        if not key.startswith(tuple(f"{name}." for name in layers))
    }
    for name, layer in layers.items():
        experts = [dict(expert.state_dict()) for expert in layer.experts]
        chosen = experts if which == MEAN else [experts[min(int(which), len(experts) - 1)]]
        for part in experts[0]:
            state[f"{name}.{part}"] = torch.stack([expert[part] for expert in chosen]).mean(dim=0)
    with torch.device("meta"):
        model = Clip(config)
    model.load_state_dict(state, assign=True)
    told = repr([source.digest, "dense", which]).encode()
    return replace(source, model=model.requires_grad_(False).eval(), digest=hashlib.sha256(told).hexdigest())
