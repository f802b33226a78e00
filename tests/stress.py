"""Random weights made as hard on low precision as trained ones, while the fp32 function stays what it was.

Trained vision transformers carry |x| of about 1,400 in their residual stream, in few channels. Random weights carry 5,
so that a cast to fp16 or int8 which ruins a real model passes every test on them.

A LayerNorm divides by the spread of the whole token, so a single channel of the stream cannot be raised without changing
what every reader sees. What can be planted exactly, in powers of two, are the two things that such outliers do:
the stream as a whole reaches `magnitude` (its squares pass fp16's 65,504, a decomposed norm overflows), and a few channels
of every norm's output do (one int8 scale for the tensor leaves nothing for the others).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgeclip.models.clip import Block, Clip, ImageTower, TextTower
from tests.checkpoints import fixed_pixels

CHANNELS = 3  # how many channels of a norm's output are raised


def plant_outliers(model: Clip, magnitude: float = 1400) -> None:
    """Raise residual stream and norm outputs of both towers to about `magnitude`, in place.

    Norm epsilons grow with the stream, in the modules and in `model.config`.

    Raises:
        ValueError: a tower pools by attention, where a norm outside the config reads the stream.
    """
    if model.image.head is not None:
        raise ValueError(f"want an image tower without an attention pool, got {model.config.image.pool!r}")
    config = model.config
    for name, tower in (("image", model.image), ("text", model.text)):
        part = getattr(config, name)
        _raise_norm_outputs(tower, magnitude)
        scale = _power_of_two(magnitude / max(float(x.abs().max()) for x in streams(tower)))
        _scale_stream(tower, scale)
        blocks = dataclasses.replace(part.blocks, norm_eps=part.blocks.norm_eps * scale**2)
        part = dataclasses.replace(part, blocks=blocks)
        config = dataclasses.replace(config, **{name: part})
        tower.config = part
    model.config = config


def plant_trunk_outliers(trunk: ImageTower, magnitude: float = 1400) -> None:
    """The same in an image tower that stands alone, as a detector's does; its config is left as it is."""
    _raise_norm_outputs(trunk, magnitude)
    _scale_stream(trunk, _power_of_two(magnitude / max(float(x.abs().max()) for x in streams(trunk))))


def plant_overflow(tower: ImageTower | TextTower, peak: float = 2e5) -> None:
    """Raise one tower's residual stream to about `peak`, beyond fp16's 65,504, as SigLIP's is. In place.

    An attention pool reads what the last norm has scaled back, so it stays as it is.
    """
    _scale_stream(tower, _power_of_two(peak / max(float(x.abs().max()) for x in streams(tower))))


def streams(tower: ImageTower | TextTower) -> list[Tensor]:
    """The residual stream after every block, on inputs made of arithmetic."""
    return _record(tower, tower.blocks)


def norm_outputs(tower: ImageTower | TextTower) -> list[Tensor]:
    """What the norms inside the blocks hand to their linear layers, on the same inputs."""
    norms = (
        norm for block in tower.blocks if isinstance(block, Block) for norm in (block.norm1, block.norm2)
    )
    return _record(tower, norms)


def _record(tower: ImageTower | TextTower, modules: Iterable[nn.Module]) -> list[Tensor]:
    found: list[Tensor] = []
    handles = [m.register_forward_hook(lambda module, inputs, output: found.append(output)) for m in modules]
    with torch.no_grad():
        if isinstance(tower, ImageTower):
            tower(fixed_pixels(2, *tower.config.image_size))
        else:
            ids = torch.arange(2 * tower.config.context_length) * 7 % tower.config.vocab_size
            tower(ids.view(2, -1))
    for handle in handles:
        handle.remove()
    return found


def _power_of_two(ratio: float) -> float:
    return float(2 ** round(math.log2(ratio)))


@torch.no_grad()
def _raise_norm_outputs(tower: ImageTower | TextTower, magnitude: float) -> None:
    outputs = iter(norm_outputs(tower))
    for i, block in enumerate(tower.blocks):
        assert isinstance(block, Block)
        for norm, reader in ((block.norm1, block.attention.qkv), (block.norm2, block.mlp.fc1)):
            peaks = next(outputs).abs().flatten(0, -2).max(dim=0).values
            for k in range(CHANNELS):
                channel = (11 * i + 17 * k) % len(peaks)
                gain = _power_of_two(magnitude / float(peaks[channel]))
                norm.weight[channel] *= gain
                norm.bias[channel] *= gain
                reader.weight[:, channel] /= gain


@torch.no_grad()
def _scale_stream(tower: ImageTower | TextTower, scale: float) -> None:
    if isinstance(tower, ImageTower):
        writers: list[Tensor | None] = [
            tower.patches.weight,
            tower.patches.bias,
            tower.class_token,
            tower.position,
        ]
        writers += [tower.norm_pre.weight, tower.norm_pre.bias] if tower.norm_pre is not None else []
        last = tower.norm_post
    else:
        writers, last = [tower.embedding.weight, tower.position], tower.norm_final
    for block in tower.blocks:
        assert isinstance(block, Block)
        writers += [*block.attention.out.parameters(), *block.mlp.fc2.parameters()]
    for writer in writers:
        if writer is not None:
            writer.mul_(scale)
    pool = set(tower.head.modules()) if isinstance(tower, ImageTower) and tower.head is not None else set()
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm) and module not in pool:
            module.eps *= scale**2
    assert last is not None, "only the norm after the last block takes the scale out again"


@torch.no_grad()
def plant_stream_channel(tower: ImageTower, magnitude: float = 1400) -> None:
    """Put a constant of `magnitude` into one channel of the residual stream, in place: what all tokens of trained towers carry.

    The function changes (a norm sees the channel), so that what is compared is the new one in two precisions. Norms are
    raised by what the channel took from them, and do not pass it on.

    Raises:
        ValueError: the tower has no norm before its blocks, which is where the channel starts.
    """
    if tower.norm_pre is None:
        raise ValueError("want an image tower with a norm before its blocks")
    before = [float(x.std(dim=-1).mean()) for x in (*streams(tower)[:1], *streams(tower))]
    channel = tower.config.blocks.width // 2
    tower.norm_pre.bias[channel] += magnitude
    after = [float(x.std(dim=-1).mean()) for x in (*streams(tower)[:1], *streams(tower))]
    norms = [[block.norm1, block.norm2] for block in tower.blocks if isinstance(block, Block)]
    for pair, was, now in zip([*norms, [tower.norm_post]], before, after, strict=True):
        for norm in pair:
            assert norm is not None
            norm.weight *= now / was
            norm.bias += norm.weight * (magnitude / len(norm.weight) / now)  # what it took from the mean
            norm.weight[channel] = 0
