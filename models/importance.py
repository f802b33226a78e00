"""How much each input of a canonical tower's linear layers matters: what a smaller tower's heads, units and channels are chosen by.

The score of an input k of a layer with weight W is E[x_k^2] * |W[:, k]|^2, the energy that it brings to the output. E[x_k^2] is either
measured on samples or, without any, what a standardised stream would give: behind a LayerNorm of gain g and bias b it is g^2 + b^2.
With a gradient it is E[(x_k * dL/dx_k)^2] of the contrastive loss, first-order: what leaving the input out would change
(Molchanov et al. 2019, arXiv:1906.10771). Shapes: N pictures or texts, T tokens, K inputs of a layer.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.errors import InputError
from edgeclip.models.clip import Block, ImageTower, MapHead, TextTower
from edgeclip.models.feed_forward import Mlp, MoeMlp
from edgeclip.models.source import DualEncoder

Importance = Literal["weights", "activations", "gradients", "uniform", "learned"]
CHOICES: tuple[Importance, ...] = get_args(Importance)
MEASURED: tuple[Importance, ...] = ("activations", "gradients", "learned")  # those that need samples
_BATCH = 32

Scores = dict[str, Tensor]  # a linear layer by name in its tower, e.g. "blocks.3.mlp.fc2" -> (K,)


@dataclass(frozen=True)
class PairSamples:
    """Pictures and their texts as the model takes them; row i of one describes row i of the other."""

    pixels: Tensor  # (N, 3, H, W) normalised
    input_ids: Tensor  # (N, L)

    def digest(self) -> str:
        """SHA-256 of both: what is measured on others may become another student."""
        told = hashlib.sha256()
        for tensor in (self.pixels, self.input_ids):
            told.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
            told.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return told.hexdigest()


def tower_scores(
    model: DualEncoder, kind: Importance, samples: PairSamples | None = None
) -> dict[str, Scores]:
    """Scores of both towers, "image" and "text", by their linear layers; a tower that is not canonical has none.

    Args:
        kind: "uniform" has no scores at all; "learned" begins with those of "activations" (learned_choice.py).
        samples: of those that are measured; some tens of pairs.
    Raises:
        InputError: samples are missing, or not as many pictures as texts, or fewer than 2 for "gradients".
    """
    if kind == "uniform":
        return {"image": {}, "text": {}}
    if kind in MEASURED:
        if samples is None:
            raise InputError(f"importance {kind}: expected pairs to measure on, got none. Use weights.")
        if len(samples.pixels) != len(samples.input_ids) or len(samples.pixels) < 2:
            raise InputError(
                f"importance {kind}: expected 2 pairs or more, got {len(samples.pixels)} pictures and {len(samples.input_ids)} texts."
            )
    found: dict[str, Scores] = {}
    measured = _by_gradients(model, samples) if kind == "gradients" and samples else None
    for name in ("image", "text"):
        tower: Any = getattr(model, name)
        if not isinstance(tower, (ImageTower, TextTower)):
            found[name] = {}
        elif measured is not None:
            found[name] = measured[name]
        else:
            if kind == "weights" or samples is None:
                squares = _standardised(tower)
            else:
                squares = _seen(tower, samples.pixels if name == "image" else samples.input_ids)
            layers = dict(tower.named_modules())
            found[name] = {
                layer: square * layers[layer].weight.detach().float().square().sum(dim=0)
                for layer, square in squares.items()
            }
    return found


def _standardised(tower: ImageTower | TextTower) -> Scores:
    """E[x^2] of every layer's inputs if each channel of the stream were standardised and no weight knew of another."""
    found: Scores = {}
    for i, block in enumerate(tower.blocks):
        assert isinstance(block, Block)
        inner = block.attention.out.in_features
        found[f"blocks.{i}.attention.qkv"] = read = _gain(block.norm1)
        qkv = block.attention.qkv
        found[f"blocks.{i}.attention.out"] = _passed(qkv.weight[2 * inner :], qkv.bias[2 * inner :], read)
        for name, mlp in mlps(block, f"blocks.{i}.mlp"):
            found |= _of_mlp(name, mlp, _gain(block.norm2))
    last = tower.norm_post if isinstance(tower, ImageTower) else tower.norm_final
    head = getattr(tower, "head", None)
    ones = torch.ones(tower.config.blocks.width)
    pooled = ones if last is None else _gain(last)
    if head is not None:
        read = ones if last is None or len(pooled) != len(ones) else pooled
        if isinstance(head, MapHead):
            inner = head.out.in_features
            found["head.kv"] = read
            found["head.out"] = _passed(head.kv.weight[inner:], head.kv.bias[inner:], read)
            found |= _of_mlp("head.mlp", head.mlp, _gain(head.norm))
        else:
            found["head.k"] = found["head.v"] = _gain(head.norm_k)
    if tower.projection is not None:
        inputs = tower.projection.in_features
        found["projection"] = pooled if len(pooled) == inputs else torch.ones(inputs)
    return found


def mlps(block: Block, name: str) -> list[tuple[str, Mlp]]:
    """A block's feed-forward, or its experts', by name."""
    if isinstance(block.mlp, MoeMlp):
        return [
            (f"{name}.experts.{i}", mlp) for i, mlp in enumerate(block.mlp.experts) if isinstance(mlp, Mlp)
        ]
    return [(name, block.mlp)]


def _of_mlp(name: str, mlp: Mlp, read: Tensor) -> Scores:
    return {f"{name}.fc1": read, f"{name}.fc2": _passed(mlp.fc1.weight, mlp.fc1.bias, read)}


def _gain(norm: nn.LayerNorm) -> Tensor:
    return norm.weight.detach().float().square() + norm.bias.detach().float().square()


def _passed(weight: Tensor, bias: Tensor, squares: Tensor) -> Tensor:
    """(K,) E[x^2] -> (O,) of what a layer makes of independent inputs."""
    return weight.detach().float().square() @ squares + bias.detach().float().square()


def _layers(tower: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear)
        and not name.endswith(("router", "head.q"))  # q reads learned queries
    }


@contextlib.contextmanager
def _watched(tower: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block, `see` is given the input of each linear layer whenever one runs."""
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: see(name, given[0]))
        for name, layer in _layers(tower).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _seen(tower: nn.Module, inputs: Tensor) -> Scores:
    """E[x^2] of every layer's inputs on samples; an expert's over the tokens that it got, summed: rare ones count less."""
    sums: Scores = {name: torch.zeros(layer.in_features) for name, layer in _layers(tower).items()}

    def see(name: str, x: Tensor) -> None:
        sums[name] += x.detach().float().flatten(0, -2).square().sum(dim=0)

    with _watched(tower, see):
        for start in range(0, len(inputs), _BATCH):
            tower(inputs[start : start + _BATCH])
    return {name: total / len(inputs) for name, total in sums.items()}


def _by_gradients(model: DualEncoder, samples: PairSamples) -> dict[str, Scores]:
    """E[(x * dL/dx)^2] over samples, summed over each one's tokens before the square."""
    kept: dict[str, dict[str, Tensor]] = {"image": {}, "text": {}}
    towers: dict[str, Any] = {"image": model.image, "text": model.text}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    for parameter in frozen:  # whatever the caller froze: inputs need a path to the loss
        parameter.requires_grad_(True)
    try:
        with contextlib.ExitStack() as stack, torch.enable_grad():
            for name, tower in towers.items():
                stack.enter_context(_watched(tower, _keeper(kept[name])))
            image = F.normalize(model.encode_image(samples.pixels), dim=-1)
            text = F.normalize(model.encode_text(samples.input_ids), dim=-1)
            logits = model.logit_scale.detach().exp() * image @ text.T
            own = torch.arange(len(logits))
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            inputs = [x for inputs in kept.values() for x in inputs.values()]
            slopes = iter(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return {
        name: {layer: _first_order(x.detach(), next(slopes)) for layer, x in inputs.items()}
        for name, inputs in kept.items()
    }


def _keeper(into: dict[str, Tensor]) -> Callable[[str, Tensor], None]:
    return into.__setitem__


def _first_order(x: Tensor, slope: Tensor) -> Tensor:
    """(N, T, K) or (N, K) -> (K,)."""
    effect = (x * slope).float()
    per_sample = effect.sum(dim=1) if effect.ndim == 3 else effect
    return per_sample.square().mean(dim=0)
