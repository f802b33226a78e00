"""Which experts a model's tokens choose: what pruning, merging and reports of a mixture go by.

Only tokens that reach the embedding are counted. Behind the pooled token of a causal text nothing does, padding that attention does not
see never does, and in a tower's last block only the pooled token does, where one is pooled: counted, they would keep experts alive that
no embedding depends on.
Shapes: N pictures or texts, T tokens, W width, E experts, k those that a token takes, R tokens that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgeclip.errors import InputError
from edgeclip.models.feed_forward import MoeMlp, chosen, moe_layers, recorded
from edgeclip.models.read_tokens import pooled_token, read_tokens
from edgeclip.models.source import DualEncoder

Tower = Literal["image", "text"]
KEPT = 2048  # tokens of a mixture, evenly drawn: what likeness and a merged router's row are found on
_BATCH = 8


@dataclass(frozen=True)
class ExpertsSeen:
    """What one mixture did with the samples' tokens."""

    tokens: int  # that were counted
    use: Tensor  # (E,) float64 share of the tokens' choices; they sum to 1
    inputs: Tensor  # (R, W) float32 what some of these tokens brought to the router, evenly drawn


def towers_with_experts(model: DualEncoder) -> tuple[Tower, ...]:
    """Those of a model's towers that have a mixture."""
    towers: tuple[Tower, ...] = ("image", "text")
    return tuple(t for t in towers if (tower := getattr(model, t)) is not None and moe_layers(tower))


def expert_use(model: DualEncoder, inputs: Mapping[Tower, Tensor]) -> dict[str, ExpertsSeen]:
    """Run a model and count what its routers choose.

    Args:
        inputs: tower -> (N, 3, H, W) normalised pixels, or (N, L) ids.
    Returns:
        mixture by name, e.g. "image.blocks.3.mlp" -> what was seen of it, in the model's order.
    Raises:
        InputError: a tower has no mixtures, or its samples hold no token that counts.
    """
    found: dict[str, ExpertsSeen] = {}
    for tower, samples in inputs.items():
        module = getattr(model, tower)
        if module is None or not moe_layers(module):
            raise InputError(f"the {tower} tower has no mixture of experts, so that nothing is chosen in it.")
        counts = _Counts(module, len(samples))
        for start in range(0, len(samples), _BATCH):
            counts.add(samples[start : start + _BATCH])
        found |= {f"{tower}.{name}": seen for name, seen in counts.seen().items()}
    return found


class _Counts:
    """Choices of one tower, batch by batch."""

    def __init__(self, tower: nn.Module, samples: int) -> None:
        self.tower, self.samples, self.layers = tower, samples, moe_layers(tower)
        self.choices = {
            n: torch.zeros(len(layer.experts), dtype=torch.float64) for n, layer in self.layers.items()
        }
        self.tokens = dict.fromkeys(self.layers, 0)
        self.rows: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        self.draw = torch.Generator().manual_seed(0)

    def add(self, inputs: Tensor) -> None:
        reads: dict[MoeMlp, Tensor] = {}

        def keep(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, MoeMlp)
            reads[layer] = given[0]

        hooks = [layer.register_forward_pre_hook(keep) for layer in self.layers.values()]
        try:
            with torch.no_grad(), recorded(self.tower) as heard:
                self.tower(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        logits = {id(layer): value for layer, value in zip(heard.layers, heard.logits, strict=True)}
        most = max(1, -(-KEPT * len(inputs) // self.samples))
        for name, layer in self.layers.items():
            said = logits[id(layer)]
            counted = counted_tokens(self.tower, name, inputs)
            self.choices[name] += chosen(said, layer.top_k)[counted].sum(dim=0).double()
            rows = reads[layer][counted]
            self.tokens[name] += len(rows)
            self.rows[name].append(rows[torch.randperm(len(rows), generator=self.draw)[:most].sort()[0]])

    def seen(self) -> dict[str, ExpertsSeen]:
        if any(count == 0 for count in self.tokens.values()):
            raise InputError(
                "the samples hold no token that reaches an embedding. Pass pictures, or texts that are not empty."
            )
        return {
            name: ExpertsSeen(
                self.tokens[name], choices / choices.sum(), torch.cat(self.rows[name])[:KEPT].float()
            )
            for name, choices in self.choices.items()
        }


def counted_tokens(tower: Any, mixture: str, inputs: Tensor) -> Tensor:
    """Which tokens of a block's feed-forward reach the embedding.

    Args:
        mixture: its name in the tower, e.g. "blocks.3.mlp".
        inputs: (N, 3, H, W) pixels or (N, L) ids, as the tower took them.
    Returns:
        (N, T) bool.
    """
    last = mixture == f"blocks.{len(tower.blocks) - 1}.mlp"
    pooled = pooled_token(tower, inputs) if last else None
    return read_tokens(tower, inputs) if pooled is None else pooled
