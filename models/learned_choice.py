"""Which parts of a tower stay, learned: masks over blocks, heads, hidden units and channels, until the masked tower says what the whole one does.

Every mask is open for exactly as many parts as the student will have, those of the highest scores: what is trained on is always a
student that could be made, up to the order of sums what `inherit` would cut. A score's gradient is its mask's own, passed straight through. Weights do
not move. A quarter of the samples judges: of the choices met on the way the best is kept, the one that it began with included.
Sources: Wu et al. 2023 (TinyCLIP), arXiv:2309.12314, section 3.2 (masks of heads, hidden units and channels, trained towards the
teacher); in place of its sampled gates and their penalty the straight-through top-k of Sanh et al. 2020, arXiv:2005.07683, which has no
weights to balance. Masks of blocks are ours.
Shapes: N samples, T tokens, W channels of the stream, G parts of one kind in one place.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.models.clip import AttentionalPooler, Block, ImageTower, TextTower

Tower = ImageTower | TextTower
# a place -> (G,) scores: "channels", "layers", "blocks.3.attention.out" by head, "blocks.3.mlp.fc2"
Parts = dict[str, Tensor]

CHANNELS, LAYERS = "channels", "layers"
STEPS = 160
BATCH = 16
RATE = 0.05  # of scores that begin between -1 and 1
_HELD = 4  # every so many-th sample judges
_LOOK = 10  # steps between two judgements


def best(scores: Tensor, count: int) -> Tensor:
    """(count,) rising numbers of the highest; ties go to the lower number."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def learn_choice(
    tower: Tower, importance: Parts, counts: Mapping[str, int], inputs: Tensor, *, layers: Sequence[int] = ()
) -> Parts:
    """Scores of the same parts by which the tower loses least.

    Args:
        importance: what is begun with; only the order of each place's counts. With LAYERS, the blocks that stay are learned too.
        counts: how many parts stay in each place; one that is not named keeps all.
        inputs: (N, 3, H, W) pixels or (N, L) ids; N is 8 or more.
        layers: the blocks that stay, where they are not learned; none: all.
    """
    scores = {
        place: _ranks(importance[place]).requires_grad_(True)
        for place, count in counts.items()
        if count < len(importance[place])
    }
    if not scores:
        return importance
    held = torch.arange(len(inputs)) % _HELD == _HELD - 1
    with torch.no_grad():
        aims = torch.cat([tower(part) for part in torch.split(inputs, BATCH)])
    judge, judged = inputs[held], aims[held]
    own, wanted = inputs[~held], aims[~held]

    named = torch.zeros(len(tower.blocks))
    named[list(layers)] = 1

    def mask(place: str) -> Tensor | None:
        if place == LAYERS and place not in scores:
            return named if layers else None
        return _straight_through(scores[place], counts[place]) if place in scores else None

    least, kept = math.inf, dict(importance)
    velocity = {place: torch.zeros_like(value) for place, value in scores.items()}
    generator = torch.Generator().manual_seed(0)
    with masked(tower, mask):
        for step in range(STEPS):
            if step % _LOOK == 0 and (lost := _lost(tower, judge, judged)) < least:
                least, kept = lost, _copied(importance, scores)
            rows = torch.randperm(len(own), generator=generator)[:BATCH]
            with torch.enable_grad():
                loss = _loss(tower(own[rows]), wanted[rows])
                slopes = torch.autograd.grad(
                    loss, list(scores.values()), allow_unused=True, materialize_grads=True
                )
            rate = RATE / 2 * (1 + math.cos(math.pi * step / STEPS))
            for (place, value), slope in zip(scores.items(), slopes, strict=True):
                # of one size in every place, so that of a place's parts those move that matter
                velocity[place].mul_(0.9).add_(slope)
                size = velocity[place].square().mean().sqrt().clamp_min(1e-20)
                value.data.sub_(rate * velocity[place] / size)
        return _copied(importance, scores) if _lost(tower, judge, judged) < least else kept


def _copied(importance: Parts, scores: Parts) -> Parts:
    return {**importance, **{place: value.detach().clone() for place, value in scores.items()}}


@torch.no_grad()
def _lost(tower: Tower, inputs: Tensor, aims: Tensor) -> float:
    parts = zip(torch.split(inputs, BATCH), torch.split(aims, BATCH), strict=True)
    return sum(float(_loss(tower(x), aim)) * len(x) for x, aim in parts)


def _ranks(importance: Tensor) -> Tensor:
    """(G,) -1 for the least to 1 for the most: how far apart they are says nothing about what leaving them out does."""
    # of equals the first counts more, as in `best`
    order = importance.argsort(descending=True, stable=True)
    ranks = torch.empty(len(order))
    ranks[order] = torch.linspace(1, -1, len(order))
    return ranks


def _straight_through(scores: Tensor, count: int) -> Tensor:
    hard = torch.zeros_like(scores)
    hard[best(scores.detach(), count)] = 1
    return hard + scores - scores.detach()


def _loss(said: Tensor, aim: Tensor) -> Tensor:
    """1 less the mean cosine."""
    return 1 - F.cosine_similarity(said, aim, dim=-1).mean()


@contextlib.contextmanager
def masked(tower: Tower, mask: Callable[[str], Tensor | None]) -> Iterator[None]:
    """Within the block the tower computes without the parts whose mask is 0, as if they had been cut out.

    Args:
        mask: of a place, (G,) of 0 and 1; None: all its parts are there.
    """
    apart = isinstance(
        getattr(tower, "head", None), AttentionalPooler
    )  # its pooled vector is no stream of the tower's
    own = {"norm_q", "norm_post"} if apart and getattr(tower.config, "norm_after_pool", False) else {"norm_q"}
    hooks = []
    for name, module in tower.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.LayerNorm) and last not in own:
            hooks.append(module.register_forward_hook(_in_norm(mask)))
        elif last in ("out", "fc2") and not (apart and name.startswith("head.")):
            hooks.append(module.register_forward_pre_hook(_in_front(mask, name)))
        elif name in ("head.q", "head.kv") and not apart:  # they read the stream as it is
            hooks.append(module.register_forward_pre_hook(_in_front(mask, CHANNELS)))
        elif isinstance(module, Block):
            hooks.append(module.register_forward_hook(_around(mask, int(last))))
    if tower.projection is not None and not apart:
        hooks.append(tower.projection.register_forward_pre_hook(_in_front(mask, CHANNELS)))
    elif not apart:
        hooks.append(tower.register_forward_hook(lambda _, given, made: _times(made, mask(CHANNELS))))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _times(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with its last axis' parts, each of several numbers in a row, multiplied."""
    return x if mask is None else x * mask.repeat_interleave(x.shape[-1] // len(mask))


def _in_front(mask: Callable[[str], Tensor | None], place: str) -> Callable[..., Tensor]:
    return lambda _, given: _times(given[0], mask(place))


def _around(mask: Callable[[str], Tensor | None], number: int) -> Callable[..., Tensor]:
    def hook(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        layers = mask(LAYERS)
        return made if layers is None else given[0] + layers[number] * (made - given[0])

    return hook


def _in_norm(mask: Callable[[str], Tensor | None]) -> Callable[..., Tensor]:
    """A LayerNorm over the channels that are there."""

    def hook(norm: nn.LayerNorm, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        channels = mask(CHANNELS)
        if channels is None:
            return made
        x, count = given[0], channels.sum()
        away = x - (x * channels).sum(dim=-1, keepdim=True) / count
        spread = ((away.square() * channels).sum(dim=-1, keepdim=True) / count + norm.eps).rsqrt()
        return (away * spread * norm.weight + norm.bias) * channels

    return hook
