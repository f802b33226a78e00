"""A dense CLIP as one with mixtures of experts: its feed-forwards copied, or those of several trainings gathered.

Sources: Komatsuzaki et al. 2023 (sparse upcycling), arXiv:2212.05055; Zhang et al. 2024 (CLIP-MoE's Diversified Multiplet Upcycling),
arXiv:2409.19291.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgeclip.errors import InputError, SourceError
from edgeclip.models.clip import Clip, ImageTower, TextTower
from edgeclip.models.config import MoeConfig
from edgeclip.models.feed_forward import moe_layers
from edgeclip.models.source import DualEncoder, Source

CANONICAL: dict[str, Any] = {"image": ImageTower, "text": TextTower}
ROUTER_STD = 0.02  # of a new router's weights, as in sparse upcycling


def upcycled(
    source: Source,
    *,
    experts: int,
    top_k: int,
    last_blocks: int = 0,
    towers: Sequence[str] = ("image", "text"),
    seed: int = 0,
) -> Source:
    """Every expert a copy of the feed-forward that it replaces, so that the embeddings stay what they were (to rounding).

    Args:
        source: shares no tensor with the result.
        experts: of each block, 2 or more.
        top_k: of them a token takes.
        last_blocks: so many of each tower get experts, at most all it has; 0: all.
        towers: "image", "text" or both.
        seed: of the routers' first weights.
    Raises:
        InputError: a number or a tower that cannot be.
        SourceError: a tower that is not canonical or not there, or a model that has mixtures already.
    Source: Komatsuzaki et al. 2023, arXiv:2212.05055.
    """
    if experts < 2:
        raise InputError(f"experts: expected 2 or more, got {experts}.")
    return _gathered([source] * experts, top_k, last_blocks, towers, seed)


def assembled(
    base: Source,
    stages: Sequence[Source],
    *,
    top_k: int,
    last_blocks: int = 0,
    towers: Sequence[str] = ("image", "text"),
    seed: int = 0,
) -> Source:
    """Expert 0 of each block is the base's feed-forward, the others are the stages', in order; all else is the base's.

    Args:
        base, stages: share no tensor with the result.
        top_k, last_blocks, towers, seed: as `upcycled` takes them.
    Raises:
        InputError: no stage, or a number or tower that cannot be.
        SourceError: as `upcycled`; or a stage that differs from the base in anything but the feed-forwards that become experts.
    Source: Zhang et al. 2024, arXiv:2409.19291, section 3.
    """
    if not stages:
        raise InputError("stages: expected 1 or more beside the base, got none.")
    patterns = feed_forwards(base.model, last_blocks, towers)
    for stage in stages:
        _check_stage(base, stage, patterns)
    return _gathered([base, *stages], top_k, last_blocks, towers, seed)


def feed_forwards(
    model: DualEncoder, last_blocks: int = 0, towers: Sequence[str] = ("image", "text")
) -> tuple[str, ...]:
    """Patterns of the parameters that become experts, e.g. "image.blocks.11.mlp.*": what a stage trains (`Recipe.trained`).

    Raises:
        InputError, SourceError: as `upcycled`.
    """
    return tuple(
        f"{name}.blocks.{block}.mlp.*"
        for name, blocks in _places(model, last_blocks, towers).items()
        for block in blocks
    )


def _gathered(
    sources: list[Source], top_k: int, last_blocks: int, towers: Sequence[str], seed: int
) -> Source:
    base, experts = sources[0], len(sources)
    model: Any = base.model
    if not 1 <= top_k <= experts:
        raise InputError(f"top_k: expected 1 to {experts}, the number of experts, got {top_k}.")
    config: Any = model.config
    for name, places in _places(model, last_blocks, towers).items():
        tower = getattr(config, name)
        counts = tuple(experts * (block in places) for block in range(tower.blocks.layers))
        blocks = replace(tower.blocks, moe=MoeConfig(counts, top_k))
        config = replace(config, **{name: replace(tower, blocks=blocks)})
    with torch.device("meta"):
        made = type(model)(config)
    generator = torch.Generator().manual_seed(seed)
    states = [source.model.state_dict() for source in sources]
    state = {name: _tensor(name, like, states, generator) for name, like in made.state_dict().items()}
    made.load_state_dict(state, assign=True)
    told = [*(source.digest for source in sources), config.to_json(), seed]
    return replace(
        base,
        model=made.requires_grad_(False).eval(),
        pooling=config.pooling,
        digest=hashlib.sha256(repr(told).encode()).hexdigest(),
    )


def _tensor(name: str, like: Tensor, states: list[dict[str, Tensor]], generator: torch.Generator) -> Tensor:
    """The value of one tensor of the mixture: a new router, an expert's, or the base's; a copy, for experts are trained apart."""
    if name.endswith(".mlp.router.weight"):
        return torch.randn(like.shape, generator=generator) * ROUTER_STD
    found = re.fullmatch(r"(.*\.mlp)\.experts\.(\d+)\.(.*)", name)
    if found is None:
        return states[0][name].detach().clone()
    return states[int(found[2])][f"{found[1]}.{found[3]}"].detach().clone()


def _places(model: DualEncoder, last_blocks: int, towers: Sequence[str]) -> dict[str, range]:
    """Tower -> which of its blocks get experts."""
    if last_blocks < 0:
        raise InputError(f"last_blocks: expected 0 or more, got {last_blocks}.")
    if not towers or not set(towers) <= set(CANONICAL):
        raise InputError(f"towers: expected image, text or both, got {', '.join(towers) or 'none'}.")
    if not isinstance(model, Clip):
        raise SourceError(f"experts: only a CLIP's towers can have some, this is a {type(model).__name__}.")
    if have := moe_layers(model):
        raise SourceError(
            f"experts: {next(iter(have))} is a mixture of experts already. Start from a dense model."
        )
    found = {}
    for name in towers:
        tower, kind = getattr(model, name), CANONICAL[name]
        if type(tower) is not kind:
            what = "is not there" if tower is None else f"is a {type(tower).__name__}"
            raise SourceError(
                f"experts: the {name} tower {what}, and only a {kind.__name__} can have some. Leave it out."
            )
        layers: int = tower.config.blocks.layers
        found[name] = range(layers - min(last_blocks or layers, layers), layers)
    return found


def _check_stage(base: Source, stage: Source, patterns: tuple[str, ...]) -> None:
    free = tuple(pattern.removesuffix("*") for pattern in patterns)
    for what in ("preprocessing", "text", "tokenizer_json"):
        if getattr(base, what) != getattr(stage, what):
            raise SourceError(f"{stage.spec}: {what} is not that of {base.spec}. Train stages from one base.")
    mine, its = base.model.state_dict(), stage.model.state_dict()
    one, other = (getattr(source.model, "config", None) for source in (base, stage))
    if one != other or mine.keys() != its.keys():
        raise SourceError(f"{stage.spec}: has other sizes than {base.spec}. Train stages from one base.")
    for name, value in mine.items():
        if not name.startswith(free) and not torch.equal(value, its[name]):
            raise SourceError(
                f"{stage.spec}: {name} is not that of {base.spec}, and only feed-forwards that become experts may differ. "
                f"Train a stage with trained={patterns[0]},... alone."
            )
