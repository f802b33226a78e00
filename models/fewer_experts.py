"""A model with fewer experts: those that are seldom chosen are dropped, those that are alike become one.

Both make another model with a digest of its own. A block that is left with one expert becomes a dense one, without a router.
Shapes: E experts, k those that a token takes, W width, H hidden width, R tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from edgeclip.errors import InputError
from edgeclip.models.clip import Clip
from edgeclip.models.config import ClipConfig, MoeConfig
from edgeclip.models.expert_use import ExpertsSeen
from edgeclip.models.feed_forward import Mlp, MoeMlp, moe_layers
from edgeclip.models.merged_experts import Expert, merge_alike
from edgeclip.models.source import Source

Groups = Mapping[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Fewer:
    """A smaller model and what became of its experts."""

    source: Source
    # mixture by name -> its experts now, each as the numbers of those it was made of
    groups: Groups


def pruned(
    source: Source, seen: Mapping[str, ExpertsSeen], *, keep: int | None = None, below: float | None = None
) -> Fewer:
    """Drop each block's least used experts and their rows of the router: shares are then the softmax over those that are left.

    Args:
        seen: of `expert_use`, every mixture of the model.
        keep: experts that each block keeps; a block with fewer keeps them all.
        below: drop experts with a smaller share of the choices; the most used one always stays.
    Raises:
        InputError: not one of `keep` and `below`, one out of range, or a mixture that was not measured.
    """
    layers = _check(source, seen, keep, below, "below")
    kept: dict[str, list[Expert]] = {}
    for name, layer in layers.items():
        use = seen[name].use.tolist()
        order = sorted(range(len(use)), key=lambda i: (-use[i], i))  # the most used first
        left = order[:keep] if below is None else [i for i in order if use[i] >= below] or order[:1]
        every = experts_of(layer, seen[name])
        kept[name] = [every[i] for i in sorted(left)]
    return _rebuilt(source, kept)


def merged(
    source: Source, seen: Mapping[str, ExpertsSeen], *, keep: int | None = None, above: float | None = None
) -> Fewer:
    """Make one expert of two that are alike, the most alike pair of a block first; see `merged_experts`.

    Args:
        seen: of `expert_use`, every mixture of the model.
        keep: merge until each block has so many; a block with fewer keeps them all.
        above: merge while a pair's likeness, at most 1, is this high.
    Raises:
        InputError: not one of `keep` and `above`, one out of range, or a mixture that was not measured.
    """
    layers = _check(source, seen, keep, above, "above")
    kept = {
        name: merge_alike(
            experts_of(layer, seen[name]), seen[name].inputs, layer.top_k, keep=keep or 1, above=above
        )
        for name, layer in layers.items()
    }
    return _rebuilt(source, kept)


def experts_of(layer: MoeMlp, seen: ExpertsSeen) -> list[Expert]:
    """A mixture's experts, each with its row of the router and its use."""
    with torch.no_grad():
        return [
            Expert(
                expert.fc1.weight.detach(), expert.fc1.bias.detach(), expert.fc2.weight.detach(), expert.fc2.bias.detach(),
                layer.router.weight[i].detach(), float(seen.use[i]), expert.activation, (i,),
            )
            for i, expert in enumerate(layer.experts)
            if isinstance(expert, Mlp)
        ]  # fmt: skip


def check_mixtures(source: Source) -> dict[str, MoeMlp]:
    """A model's mixtures by name. Raises InputError where there are none, or where the model is none of two canonical towers."""
    layers = moe_layers(source.model)
    if not layers or not isinstance(source.model, Clip):
        raise InputError(
            f"{source.spec}: no mixture of experts, so that there is nothing to drop or merge. "
            "Expected a source whose towers have experts; `edgeclip train` makes one of a dense model."
        )
    return layers


def _check(
    source: Source, seen: Mapping[str, ExpertsSeen], keep: int | None, share: float | None, name: str
) -> dict[str, MoeMlp]:
    layers = check_mixtures(source)
    if (keep is None) == (share is None):
        raise InputError(
            f"fewer experts: expected one of keep and {name}, got keep={keep} and {name}={share}."
        )
    most = max(len(layer.experts) for layer in layers.values())
    if keep is not None and not 1 <= keep <= most:
        raise InputError(f"keep {keep}: expected 1 to {most}, the most experts that a block has.")
    if share is not None and not 0 < share <= 1:
        raise InputError(f"{name} {share}: expected a share above 0 and at most 1.")
    if missing := [layer for layer in layers if layer not in seen]:
        raise InputError(
            f"{missing[0]}: its experts' use was not measured. Pass samples of the {missing[0].partition('.')[0]} tower."
        )
    return layers


def _rebuilt(source: Source, kept: Mapping[str, Sequence[Expert]]) -> Fewer:
    """The same model with other experts."""
    old: Any = source.model
    config: ClipConfig = old.config
    for tower in ("image", "text"):
        config = _with_counts(
            config, tower, {n: len(e) for n, e in kept.items() if n.startswith(f"{tower}.")}
        )
    state = {
        key: value
        for key, value in old.state_dict().items()
        if not any(key.startswith(f"{name}.") for name in kept)
    }
    for name, experts in kept.items():
        dense = len(experts) == 1
        for i, expert in enumerate(experts):
            place = name if dense else f"{name}.experts.{i}"
            state |= {f"{place}.{part}": value.clone() for part, value in expert.parameters().items()}
        if not dense:
            state[f"{name}.router.weight"] = torch.stack([expert.row for expert in experts])
    model = Clip(config).eval()
    model.load_state_dict(state)
    groups = {name: tuple(expert.of for expert in experts) for name, experts in kept.items()}
    return Fewer(replace(source, model=model, pooling=model.config.pooling, digest=_digest(model)), groups)


def _with_counts(config: ClipConfig, tower: str, counts: Mapping[str, int]) -> ClipConfig:
    part: Any = getattr(config, tower)
    if not counts:
        return config
    experts = list(part.blocks.moe.experts)
    for name, count in counts.items():
        experts[int(name.split(".")[2])] = count if count > 1 else 0
    moe = MoeConfig(tuple(experts), part.blocks.moe.top_k) if any(experts) else None
    changed = replace(part, blocks=replace(part.blocks, moe=moe))
    return replace(config, image=changed) if tower == "image" else replace(config, text=changed)


def _digest(model: Clip) -> str:
    """What loading the saved model will say: of its weights file."""
    state: dict[str, Tensor] = {key: value.float().contiguous() for key, value in model.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()
