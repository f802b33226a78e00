"""The gradient of one batch, however many parts and processes encode it.

A contrastive loss needs all pairs of the batch at once, so averaging the losses of parts would be another objective. Instead
the embeddings of all parts are gathered, the loss is taken over the whole, and its gradient with respect to each embedding
goes back through the part that made it. With parts, each is encoded twice and the largest part sets the memory.
Source: Gao et al. 2021 (GradCache), arXiv:2101.06983; Pham et al. 2021 (BASIC), arXiv:2111.10050, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.errors import TrainingError
from edgeclip.models.feed_forward import recorded
from edgeclip.models.source import DualEncoder
from edgeclip.models.training import distributed, routing
from edgeclip.models.training.batch import PairBatch, split
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.encode_regions import encode_mosaics, encode_regions
from edgeclip.models.training.encode_reinforced import ReinforcedBatch, encode_reinforced
from edgeclip.models.training.objectives import Objectives
from edgeclip.models.training.settings import nearest

Encode = Callable[[DualEncoder, Any], dict[str, Tensor]]


def encode_pairs(model: DualEncoder, batch: PairBatch) -> dict[str, Tensor]:
    """Unit embeddings `image`, `text` (B, D) float32 and `groups` (B,); `image_b` (B, D) where there is a second view."""
    features = {
        "image": F.normalize(model.encode_image(batch.pixels).float(), dim=-1),
        "text": F.normalize(model.encode_text(batch.input_ids).float(), dim=-1),
        "groups": batch.groups,
    }
    if batch.second is not None:
        features["image_b"] = F.normalize(model.encode_image(batch.second).float(), dim=-1)
    return features


def encode_routed_pairs(model: DualEncoder, batch: PairBatch) -> dict[str, Tensor]:
    """`encode_pairs`, and what the routers said meanwhile; see `routing.routing_features`."""
    return _routed(encode_pairs, model, batch)


def encode_routed_reinforced(model: DualEncoder, batch: ReinforcedBatch) -> dict[str, Tensor]:
    """`encode_reinforced`, and what the routers of the student said meanwhile."""
    return _routed(encode_reinforced, model, batch)


def _routed(encode: Encode, model: DualEncoder, batch: Any) -> dict[str, Tensor]:
    with recorded(model) as recorder:
        features = encode(model, batch)
    return {**features, **routing.routing_features(model, recorder, batch.input_ids)}


ENCODERS: dict[str, Encode] = {
    "pairs": encode_pairs,
    "mosaics": encode_mosaics,
    "regions": encode_regions,
    "reinforced": encode_reinforced,
}
ROUTED: dict[str, Encode] = {"pairs": encode_routed_pairs, "reinforced": encode_routed_reinforced}


def encoder(entry: str | Encode, wanted: Set[str] = frozenset()) -> Encode:
    """The table's entry, or the user's own callable.

    Args:
        wanted: features that objectives ask for; what routers say costs something, so it is told where it is wanted.
    Raises:
        TrainingError: no such entry.
    """
    if not isinstance(entry, str):
        return entry
    if entry not in ENCODERS:
        raise TrainingError(
            f"encode: no {entry!r}{nearest(entry, ENCODERS)} There are {', '.join(ENCODERS)}, or pass a callable."
        )
    return {**ENCODERS, **ROUTED}[entry] if wanted & routing.FEATURES else ENCODERS[entry]


def check_splittable(model: nn.Module, accumulate: int, shard: Shard) -> None:
    """Batch normalisation mixes the samples of a part: parts would not add up to the batch.

    Raises:
        TrainingError: the model has such layers and the batch would be split.
    """
    if accumulate * shard.world > 1:
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise TrainingError(
                    f"accumulate: {name} is a batch norm, which sees only its own part of a batch. Set accumulate=1, in one process."
                )


def backward(
    model: DualEncoder,
    batch: Any,
    encode: Encode,
    objectives: Objectives,
    context: Callable[[], AbstractContextManager[Any]],
    *,
    seed: int,
    accumulate: int = 1,
    shard: Shard | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fill `.grad` of every parameter with the gradient of the loss over the whole batch.

    Args:
        batch: this process's share; one that `encode` takes. Its `constants`, where it has them, are features too: tensors that are
            the same for every part and process.
        context: makes the context under which the towers run; objectives always see float32.
        seed: of dropout; a part's second encoding repeats its first one's.
    Returns:
        The weighted sum, and each objective's own value; where routers are watched, `routing.expert_use` too. () tensors without
        gradient.
    """
    shard = shard or Shard()
    watched = bool(objectives.wanted & routing.FEATURES)

    def judged(features: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        given: dict[str, Tensor] = getattr(batch, "constants", {})
        features = {
            **features,
            **scalars(model),
            **given,
            **(routing.expert_counts(model) if watched else {}),
        }
        loss, terms = objectives(features)
        loss.backward()  # type: ignore[no-untyped-call]
        use = routing.expert_use(features) if "image_routed" in features else {}
        return loss.detach(), {name: term.detach() for name, term in {**terms, **use}.items()}

    def run(part: Any, number: int) -> dict[str, Tensor]:
        torch.manual_seed((seed * shard.world + shard.rank) * accumulate + number)
        with context():
            return encode(model, part)

    if accumulate == shard.world == 1:
        return judged(run(batch, 0))

    parts = split(batch, accumulate)
    with torch.set_grad_enabled(accumulate == 1):  # one part: its graph is kept, nothing is encoded twice
        encoded = [run(part, number) for number, part in enumerate(parts)]
    whole = {
        name: distributed.gather(torch.cat([part[name].detach() for part in encoded]), shard)
        for name in encoded[0]
    }
    for feature in whole.values():
        feature.requires_grad_(feature.is_floating_point())
    told = judged(whole)
    for parameter in model.parameters():
        # scale and bias: every process has their whole gradient already, and the processes' will be summed
        if parameter.grad is not None:
            parameter.grad /= shard.world
    for number, part in enumerate(parts):
        features = encoded[number] if accumulate == 1 else run(part, number)
        _pull(features, whole, shard.rank * accumulate + number)
    distributed.sum_gradients(model, shard)
    return told


def _pull(features: dict[str, Tensor], whole: dict[str, Tensor], place: int) -> None:
    """Send the gradient of the part at `place` back through its embeddings."""
    pulled = [
        (feature, gradient[place * len(feature) : (place + 1) * len(feature)])
        for name, feature in features.items()
        if feature.requires_grad and (gradient := whole[name].grad) is not None
    ]
    torch.autograd.backward([feature for feature, _ in pulled], [gradient for _, gradient in pulled])


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context under which towers run; weights, embeddings and losses stay float32.

    Raises:
        TrainingError: bf16 on a GPU that has none.
    """
    if precision == "fp32":
        return nullcontext
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TrainingError("precision: this GPU has no bf16. Set precision=fp32.")
    return lambda: torch.autocast(device.type, torch.bfloat16)


def scalars(model: DualEncoder) -> dict[str, Tensor]:
    """`scale` and, where the model has one, `bias`."""
    found = {"scale": model.logit_scale.exp()}
    return found if model.logit_bias is None else {**found, "bias": model.logit_bias}
