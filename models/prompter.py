"""A CLIP with a prompter: an image embedding that a box, a point or a text turns into the embedding of a region.

The idea and the losses are CLOC's (Chen et al. 2024, arXiv:2410.02746), which has no published code. Where the paper is silent the
architecture is edgeclip's own, and its name is `PromptedClip`: frequencies of the box's corners in powers of two, a pre-norm layer, own
norm and projection behind it, sigmoid (cx, cy, w, h) in the grounding head, a point as a box without an extent. Its own, too, is that
every patch says its place in the terms of a box prompt, so that a new prompter looks into its box before it is trained (`start_from`):
without, a box must learn where tokens are from what the tower keeps of it (colours of drawn scenes after 600 steps: 0.37, with both 0.99).
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
from edgeclip.models.feed_forward import MoeMlp

# Of an untrained prompter, a patch's score where its place is the box itself: at 8, 0.56 of what boxes of 7% of drawn scenes look at lies
# inside, without places 0.08. At 16 it is 0.79, but two places were learned in 54 steps instead of 20.
SHARPNESS = 8.0
SMALL = 0.1  # size of its prompts, in that of a normed token


@dataclass(frozen=True)
class PromptedConfig(ClipConfig):
    """A CLIP, and the size of its prompter's box embedding."""

    frequencies: int = 8  # of each corner's coordinate: periods of 2, 1, 1/2, ... 1/64 of the input's side
    places: bool = False  # whether patches say their places; a checkpoint that does not tell has none

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` reads it back."""
        return {**super().to_json(), "frequencies": self.frequencies, "places": self.places}


class Prompter(nn.Module):
    """One encoder layer of one head over [image tokens; one prompt], read at the prompt.

    Every prompt stands alone with the picture. In one layer the tokens' own outputs are never read, so that their keys and values are
    those of their inputs and shared by all prompts: a prompt is one query over them and over itself. That is exactly the layer.
    """

    def __init__(self, image: ImageConfig, embed_dim: int, frequencies: int, places: bool = False) -> None:
        super().__init__()
        width = image.blocks.width
        self.frequencies = frequencies
        self.box = nn.Linear(8 * frequencies, width)
        self.text = nn.Linear(embed_dim, width)
        self.place = nn.Linear(8 * frequencies, width) if places else None
        self.block = Block(replace(image.blocks, layers=1, heads=1, moe=None))
        self.norm = nn.LayerNorm(width, eps=image.blocks.norm_eps)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        self.ground1, self.ground2 = nn.Linear(embed_dim, width), nn.Linear(width, 4)

    def of_boxes(self, boxes: Tensor) -> Tensor:
        """(N, R, 4) xyxy in 0-1 of the input -> (N, R, W) prompts."""
        return self.box(sinusoids(boxes, self.frequencies))  # type: ignore[no-any-return]

    def of_texts(self, embeddings: Tensor) -> Tensor:
        """(N, R, D) unit rows of texts -> (N, R, W) prompts."""
        return self.text(embeddings)  # type: ignore[no-any-return]

    def places(self, image: ImageConfig) -> Tensor | None:
        """(T, W) that are added to the tokens behind their norm, 0 for the class token; None of a prompter without."""
        if self.place is None:
            return None
        weight, (rows, columns) = self.place.weight, image.grid
        y, x = (torch.arange(n, dtype=weight.dtype, device=weight.device) / n for n in (rows, columns))
        y, x = torch.meshgrid(y, x, indexing="ij")
        patches = torch.stack([x, y, x + 1 / columns, y + 1 / rows], dim=-1).flatten(0, 1)
        said = self.block.norm1(self.place(sinusoids(patches, self.frequencies)))
        return F.pad(said, (0, 0, int(image.class_token), 0))

    def ask(self, tokens: Tensor, prompts: Tensor, image: ImageConfig) -> Tensor:
        """(N, T, W) of a tower of the config `image`, and (N, R, W) -> (N, R, D), not of unit length."""
        block, width = self.block, tokens.shape[-1]
        qkv = block.attention.qkv
        x, places = block.norm1(tokens), self.places(image)
        x = x if places is None else x + places
        k, v = F.linear(x, qkv.weight[width:], qkv.bias[width:]).chunk(2, dim=-1)
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
        self.prompter = Prompter(config.image, config.embed_dim, config.frequencies, config.places)

    @classmethod
    def of(cls, model: Clip, frequencies: int = 8) -> PromptedClip:
        """A CLIP's own towers, not a copy, and an untrained prompter with places that starts from the last block of its image tower.

        So started, a box looks at the patches in and around it, a text at tokens that read out like it, both through the values that
        the class token saw. Raises InputError for an image tower that is no plain vision transformer.
        """
        if type(model.image) is not ImageTower:
            raise InputError(
                f"a prompter asks a plain vision transformer, the image tower is a {type(model.image).__name__}."
            )
        config = {field.name: getattr(model.config, field.name) for field in fields(ClipConfig)}
        with torch.device("meta"):
            made = cls(PromptedConfig(**config, frequencies=frequencies, places=True))
        made.image, made.text = model.image, model.text
        made.logit_scale, made.logit_bias = model.logit_scale, model.logit_bias
        made.prompter = Prompter(model.image.config, model.config.embed_dim, frequencies, places=True)
        start_from(made.prompter, model.image)
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
    def _image(self) -> ImageConfig:
        assert isinstance(self.image, ImageTower)
        return self.image.config

    @property
    def regions(self) -> AskBoxes:
        """Tokens and boxes to embeddings."""
        return AskBoxes(self.prompter, self._image)

    @property
    def grounding(self) -> AskTexts:
        """Tokens and embeddings of texts to embeddings and boxes."""
        return AskTexts(self.prompter, self._image)


class ImageTokens(nn.Module):
    """(N, 3, H, W) normalised pixels -> (N, T, W) after the last block, class token included."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tower.tokens(pixels)


class AskBoxes(nn.Module):
    """(N, T, W) tokens and (N, R, 4) boxes, xyxy in 0-1 of the input -> (N, R, D), not of unit length. A point: x, y, x, y."""

    def __init__(self, prompter: Prompter, image: ImageConfig) -> None:
        super().__init__()
        self.prompter, self.image = prompter, image

    def forward(self, tokens: Tensor, boxes: Tensor) -> Tensor:
        return self.prompter.ask(tokens, self.prompter.of_boxes(boxes), self.image)


class AskTexts(nn.Module):
    """(N, T, W) tokens and (N, P, D) unit rows of texts -> (N, P, D), not of unit length, and (N, P, 4) boxes of those, xyxy in 0-1."""

    def __init__(self, prompter: Prompter, image: ImageConfig) -> None:
        super().__init__()
        self.prompter, self.image = prompter, image

    def forward(self, tokens: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        found = self.prompter.ask(tokens, self.prompter.of_texts(embeddings), self.image)
        return found, self.prompter.locate(found)


def sinusoids(boxes: Tensor, frequencies: int) -> Tensor:
    """(..., 4) in 0-1 -> (..., 8 * frequencies): sin and cos of pi, 2 pi, 4 pi, ... times each coordinate."""
    turns = (
        boxes[..., None] * 2.0 ** torch.arange(frequencies, dtype=boxes.dtype, device=boxes.device)
    ).flatten(-2)
    # whole turns go while the numbers are exact (a sine of 64 pi times x moves unit rows by 8e-6 in float32, this by 1e-6)
    angles = math.pi * (turns - 2 * torch.floor(turns / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@torch.no_grad()
def start_from(prompter: Prompter, tower: ImageTower) -> None:
    """Values, feed-forward layer and read-out of the tower; queries and keys so that a box finds the patches whose places are like it.

    Low frequencies weigh more, so that likeness falls off evenly with distance. Queries are turned: else a prompt is most like itself,
    and looked at itself with a share of 0.5 (a box) and 0.9 (a text).
    """
    last, own = tower.blocks[-1], prompter.block
    assert isinstance(last, Block)
    assert prompter.place is not None
    for mine, its in ((own.attention, last.attention), (own.norm1, last.norm1), (own.norm2, last.norm2)):
        mine.load_state_dict(its.state_dict())
    # of a mixture the first expert, which where a dense model was upcycled is that model's own
    own.mlp.load_state_dict((last.mlp.experts[0] if isinstance(last.mlp, MoeMlp) else last.mlp).state_dict())
    if tower.head is None:  # else another space than the tokens' is projected
        if tower.norm_post is not None:
            prompter.norm.load_state_dict(tower.norm_post.state_dict())
        if tower.projection is not None:
            prompter.projection.weight.copy_(tower.projection.weight)
    qkv, width, waves = own.attention.qkv, own.norm1.normalized_shape[0], prompter.frequencies
    turn = nn.init.orthogonal_(torch.empty(width, width))
    gain = (SHARPNESS / (own.norm1.weight.square().mean() * width**0.5)) ** 0.5
    qkv.weight[:width], qkv.weight[width : 2 * width] = gain * turn, gain * torch.eye(width)
    qkv.bias[: 2 * width] = 0
    amplitudes = (2.0 ** (-torch.arange(waves) / 2)).repeat(8)
    said = nn.init.orthogonal_(torch.empty(width, 8 * waves)) * amplitudes
    read = (
        prompter.projection.weight * prompter.norm.weight @ own.attention.out.weight @ qkv.weight[2 * width :]
    )
    # The norm behind takes lengths away; as prompts these are a tenth of a token, so that the picture is what is read out. Of a box the
    # inputs are 0.7 in size, of a text D**-0.5.
    for layer, weight, size in (
        (prompter.place, said, 0.5**0.5),
        (prompter.box, turn.T @ said, 0.5**0.5),
        (prompter.text, turn.T @ read.T, len(read) ** -0.5),
    ):
        layer.weight.copy_(weight * (SMALL * width**0.5 / (weight.norm() * size)))
        layer.bias.zero_()
