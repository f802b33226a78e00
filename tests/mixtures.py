"""Small sources with mixtures of experts, whose experts differ and are all chosen."""

from __future__ import annotations

from dataclasses import replace

import torch

from edgeclip.models.clip import Clip
from edgeclip.models.config import MoeConfig
from edgeclip.models.feed_forward import moe_layers
from edgeclip.models.source import Source
from tests.checkpoints import roughen
from tests.export.sources import TEXT, clip_source, made_source


def moe_source(
    image: tuple[int, ...] = (4, 4),
    text: tuple[int, ...] = (),
    *,
    top_k: int = 2,
    spread: float = 0.3,
    shape: str = "openai",
) -> Source:
    """A tiny CLIP with experts.

    Args:
        image, text: experts of each of the two blocks, or of the one; (): the tower is dense.
        spread: size of the noise by which an expert differs from the block's base.
    """
    config = clip_source(shape, len(image or text)).model.config  # type: ignore[attr-defined]

    def with_experts(tower: object, counts: tuple[int, ...]) -> object:
        if not counts:
            return tower
        blocks = replace(tower.blocks, moe=MoeConfig(counts, top_k))  # type: ignore[attr-defined]
        return replace(tower, blocks=blocks)  # type: ignore[type-var]

    config = replace(config, image=with_experts(config.image, image), text=with_experts(config.text, text))
    torch.manual_seed(1)
    model = Clip(config).eval()
    roughen(model)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        model.text.embedding.weight.mul_(0.5)  # type: ignore[union-attr,operator]
        model.text.position.mul_(20)  # type: ignore[union-attr,operator]
        for layer in moe_layers(model).values():
            base = layer.experts[0]
            layer.router.weight.copy_(torch.randn(layer.router.weight.shape, generator=draw) * 0.2)
            for expert in layer.experts:
                for own, common in zip(expert.parameters(), base.parameters(), strict=True):
                    size = spread * common.std()
                    own.copy_(common + torch.randn(common.shape, generator=draw) * size)
    return made_source(model, config.embed_dim, TEXT)
