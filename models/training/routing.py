"""What a batch's routers say, as features that objectives of mixtures of experts ask for.

Everything is a sum over one sample's tokens, so that parts of a batch and processes add up to the whole batch exactly: a mean of parts'
balances would be another objective. Padding of a text counts nowhere.
Shapes: B pairs, T tokens, R mixtures of a tower in its order, E the most experts of one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.errors import TrainingError
from edgeclip.models.clip import TextTower
from edgeclip.models.feed_forward import MoeMlp, Recorder, moe_layers
from edgeclip.models.read_tokens import read_tokens
from edgeclip.models.source import DualEncoder

TOWERS = ("image", "text")
FEATURES = frozenset(
    f"{tower}_{what}"
    for tower in TOWERS
    for what in ("routed", "probability", "router_z", "tokens", "experts")
)


def routing_features(model: DualEncoder, recorder: Recorder, input_ids: Tensor) -> dict[str, Tensor]:
    """Of each tower, here `image`, what was recorded while it ran; of one that has no mixtures R and E are 0.

    Args:
        input_ids: (B, L) the batch's texts.
    Returns:
        `image_routed` (B, R, E) int64, how many tokens took an expert; `image_probability` (B, R, E) sums of the softmax over all experts,
        0 for an expert that a mixture does not have; `image_router_z` (B, R) sums of logsumexp(logits)^2; `image_tokens` (B,) int64, how
        many tokens each sum is over. The second and third carry gradients.
    Raises:
        TrainingError: no tower has mixtures.
    """
    if not moe_layers(model):
        raise TrainingError(
            "objectives: what is asked of routers (load_balance, router_z) needs mixtures of experts, and this model has none. "
            "Set model=upcycled, or start from a model that has some."
        )
    found: dict[str, Tensor] = {}
    for name in TOWERS:
        tower = getattr(model, name)
        layers = [] if tower is None else list(moe_layers(tower).values())
        real = read_tokens(tower, input_ids) if layers and isinstance(tower, TextTower) else None
        sums = [_sums(recorder, layer, real) for layer in layers]
        most = max((len(layer.experts) for layer in layers), default=0)
        batch = len(input_ids)
        none = input_ids.new_zeros((batch, 0, 0))
        found |= {
            f"{name}_routed": _stacked([s[0] for s in sums], most, none),
            f"{name}_probability": _stacked([s[1] for s in sums], most, none.float()),
            f"{name}_router_z": torch.stack([s[2] for s in sums], dim=1) if sums else none.flatten(1).float(),
            f"{name}_tokens": sums[0][3] if sums else input_ids.new_zeros(batch),
        }
    return found


def expert_counts(model: DualEncoder) -> dict[str, Tensor]:
    """`image_experts` and `text_experts` (R,) int64: how many experts each mixture has."""
    device = model.logit_scale.device
    return {
        f"{name}_experts": torch.tensor(
            [len(layer.experts) for layer in moe_layers(getattr(model, name) or nn.Module()).values()],
            dtype=torch.int64,
            device=device,
        )
        for name in TOWERS
    }


def expert_use(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """`expert_use_max` and `expert_use_min` (): the share of the tokens that the busiest and the idlest expert of all mixtures took.

    Even use is k / E for both.
    """
    shares = []
    for name in TOWERS:
        experts = features[f"{name}_experts"]
        if len(experts):
            share = features[f"{name}_routed"].sum(dim=0) / features[f"{name}_tokens"].sum()
            there = torch.arange(share.shape[1], device=share.device) < experts[:, None]
            shares.append(share[there])
    every = torch.cat(shares)
    return {"expert_use_max": every.max(), "expert_use_min": every.min()}


def _sums(recorder: Recorder, layer: MoeMlp, real: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Over every token that a mixture saw: (B, E) routed, (B, E) probability, (B,) router_z, (B,) tokens."""
    calls = [i for i, one in enumerate(recorder.layers) if one is layer]  # two where there is a second view
    routed, probability, router_z, tokens = [], [], [], []
    for i in calls:
        logits, shares = recorder.logits[i], recorder.shares[i]
        counts = (
            torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device) if real is None else real
        )
        routed.append(((shares > 0) & counts[..., None]).sum(dim=1))
        probability.append((logits.softmax(dim=-1) * counts[..., None]).sum(dim=1))
        router_z.append((logits.logsumexp(dim=-1).square() * counts).sum(dim=1))
        tokens.append(counts.sum(dim=1))
    return _total(routed), _total(probability), _total(router_z), _total(tokens)


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(dim=0)


def _stacked(rows: list[Tensor], most: int, none: Tensor) -> Tensor:
    """R of (B, its own E) -> (B, R, E), 0 where a mixture has no such expert."""
    if not rows:
        return none
    return torch.stack([F.pad(row, (0, most - row.shape[1])) for row in rows], dim=1)
