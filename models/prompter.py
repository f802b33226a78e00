"""A CLIP with a prompter: an image embedding that a box, a point or a text turns into the embedding of a region.

The idea and the losses are CLOC's (Chen et al. 2024, arXiv:2410.02746), which has no published code. Where the paper is silent the
architecture is edgeclip's own, and its name is `PromptedClip`: frequencies of the box's corners in powers of two, a pre-norm layer, own
norm and projection behind it, sigmoid (cx, cy, w, h) in the grounding head, a point as a box without an extent.
Shapes: N pictures, T image tokens, R prompts, W tower width, D embedding width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.errors import InputError
from edgeclip.models.clip import Block, Clip, ImageTower
from edgeclip.models.config import ClipConfig, ImageConfig


@dataclass(frozen=True)
class PromptedConfig(ClipConfig):
    """A CLIP, and the size of its prompter's box embedding."""

    frequencies: int = 8  # of each corner's coordinate: periods of 2, 1, 1/2, ... 1/64 of the input's side

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` reads it back."""
        return {**super().to_json(), "frequencies": self.frequencies}


class Prompter(nn.Module):
    """One encoder layer of one head over [image tokens; one prompt], read at the prompt.

    Every prompt stands alone with the picture. In one layer the tokens' own outputs are never read, so that their keys and values are
    those of their inputs and shared by all prompts: a prompt is one query over them and over itself. That is exactly the layer.
    """

    def __init__(self, image: ImageConfig, embed_dim: int, frequencies: int) -> None:
        super().__init__()
        width = image.blocks.width
        self.frequencies = frequencies
        self.box = nn.Linear(8 * frequencies, width)
        self.text = nn.Linear(embed_dim, width)
        self.block = Block(replace(image.blocks, layers=1, heads=1))
        self.norm = nn.LayerNorm(width, eps=image.blocks.norm_eps)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        self.ground1, self.ground2 = nn.Linear(embed_dim, width), nn.Linear(width, 4)

    def of_boxes(self, boxes: Tensor) -> Tensor:
        """(N, R, 4) xyxy in 0-1 of the input -> (N, R, W) prompts."""
        return self.box(sinusoids(boxes, self.frequencies))  # type: ignore[no-any-return]

    def of_texts(self, embeddings: Tensor) -> Tensor:
        """(N, R, D) unit rows of texts -> (N, R, W) prompts."""
        return self.text(embeddings)  # type: ignore[no-any-return]

    def ask(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        """(N, T, W) and (N, R, W) -> (N, R, D), not of unit length."""
        block, width = self.block, tokens.shape[-1]
        qkv = block.attention.qkv
        k, v = F.linear(block.norm1(tokens), qkv.weight[width:], qkv.bias[width:]).chunk(2, dim=-1)
        q, own_k, own_v = qkv(block.norm1(prompts)).chunk(3, dim=-1)
        q = q * width**-0.5
        scores = torch.cat([q @ k.transpose(1, 2), (q * own_k).sum(-1, keepdim=True)], dim=-1)
        shares = torch.softmax(scores, dim=-1)  # (N, R, T + 1)
        x = prompts + block.attention.out(shares[..., :-1] @ v + shares[..., -1:] * own_v)
        x = x + block.mlp(block.norm2(x))
        return self.projection(self.norm(x))  # type: ignore[no-any-return]

    def locate(self, embeddings: Tensor) -> Tensor:
        """(N, R, D) of `ask`, whose length says nothing -> (N, R, 4) boxes, xyxy in 0-1 of the input's sides; may reach beyond."""
        unit = F.normalize(embeddings, dim=-1)
        centre, size = torch.sigmoid(self.ground2(F.gelu(self.ground1(unit)))).chunk(2, dim=-1)
        return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


class PromptedClip(Clip):
    """A CLIP and its prompter. `tokens` shares the image tower; `regions` and `grounding` share the prompter."""

    config: PromptedConfig

    def __init__(self, config: PromptedConfig) -> None:
        super().__init__(config)
        assert isinstance(config.image, ImageConfig)
        self.prompter = Prompter(config.image, config.embed_dim, config.frequencies)

    @classmethod
    def of(cls, model: Clip, frequencies: int = 8) -> PromptedClip:
        """A CLIP's own towers, not a copy, and an untrained prompter that starts from the last block of its image tower.

        So started, a prompt sees the picture through the values that the class token saw. Raises InputError for an image tower that is
        no plain vision transformer.
        """
        if type(model.image) is not ImageTower:
            raise InputError(
                f"a prompter asks a plain vision transformer, the image tower is a {type(model.image).__name__}."
            )
        config = {field.name: getattr(model.config, field.name) for field in fields(ClipConfig)}
        with torch.device("meta"):
            made = cls(PromptedConfig(**config, frequencies=frequencies))
        made.image, made.text = model.image, model.text
        made.logit_scale, made.logit_bias = model.logit_scale, model.logit_bias
        made.prompter = Prompter(model.image.config, model.config.embed_dim, frequencies)
        _start_from(made.prompter, model.image)
        return made

    @property
    def tokens(self) -> ImageTokens:
        """Pixels to tokens before pooling."""
        assert isinstance(self.image, ImageTower)
        return ImageTokens(self.image)

    def image_of(self, tokens: Tensor) -> Tensor:
        """(N, T, W) of `tokens` -> (N, D): what `encode_image` gives, without another run of the tower."""
        assert isinstance(self.image, ImageTower)
        return self.image.embed(tokens)

    @property
    def regions(self) -> AskBoxes:
        """Tokens and boxes to embeddings."""
        return AskBoxes(self.prompter)

    @property
    def grounding(self) -> AskTexts:
        """Tokens and embeddings of texts to embeddings and boxes."""
        return AskTexts(self.prompter)


class ImageTokens(nn.Module):
    """(N, 3, H, W) normalised pixels -> (N, T, W) after the last block, class token included."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tower.tokens(pixels)


class AskBoxes(nn.Module):
    """(N, T, W) tokens and (N, R, 4) boxes, xyxy in 0-1 of the input -> (N, R, D), not of unit length. A point: x, y, x, y."""

    def __init__(self, prompter: Prompter) -> None:
        super().__init__()
        self.prompter = prompter

    def forward(self, tokens: Tensor, boxes: Tensor) -> Tensor:
        return self.prompter.ask(tokens, self.prompter.of_boxes(boxes))


class AskTexts(nn.Module):
    """(N, T, W) tokens and (N, P, D) unit rows of texts -> (N, P, D), not of unit length, and (N, P, 4) boxes of those, xyxy in 0-1."""

    def __init__(self, prompter: Prompter) -> None:
        super().__init__()
        self.prompter = prompter

    def forward(self, tokens: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        found = self.prompter.ask(tokens, self.prompter.of_texts(embeddings))
        return found, self.prompter.locate(found)


def sinusoids(boxes: Tensor, frequencies: int) -> Tensor:
    """(..., 4) in 0-1 -> (..., 8 * frequencies): sin and cos of pi, 2 pi, 4 pi, ... times each coordinate."""
    turns = (
        boxes[..., None] * 2.0 ** torch.arange(frequencies, dtype=boxes.dtype, device=boxes.device)
    ).flatten(-2)
    # whole turns go while the numbers are exact (a sine of 64 pi times x moves unit rows by 8e-6 in float32, this by 1e-6)
    angles = math.pi * (turns - 2 * torch.floor(turns / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _start_from(prompter: Prompter, tower: ImageTower) -> None:
    last = tower.blocks[-1]
    assert isinstance(last, Block)
    prompter.block.load_state_dict(last.state_dict())
    if tower.head is None:  # else another space than the tokens' is projected
        if tower.norm_post is not None:
            prompter.norm.load_state_dict(tower.norm_post.state_dict())
        if tower.projection is not None:
            with torch.no_grad():
                prompter.projection.weight.copy_(tower.projection.weight)
