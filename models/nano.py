"""NanoCLIP: a dual encoder of about 3 M parameters for pictograms and clip art, small enough to ship in the wheel.

The image tower is a plain residual network of 3x3 convolutions; the text tower a weighted bag of subwords with a residual
feed-forward. Neither needs more than onnxruntime's plainest operators.
Shapes: N pictures or texts, S picture side, L text positions, D embedding width.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeclip.models.nano_detector import NanoDetector, NanoDetectorConfig
from edgeclip.models.source import DualEncoder


@dataclass(frozen=True)
class NanoConfig:
    """Sizes of both towers."""

    image_size: int = 64  # S, a multiple of 16
    widths: tuple[int, ...] = (32, 64, 128, 192)  # channels of the stages; each halves the side
    depths: tuple[int, ...] = (1, 2, 2, 2)  # residual blocks of the stages
    embed_dim: int = 192  # D
    vocab_size: int = 4096
    text_width: int = 160
    text_layers: int = 2
    context_length: int = 32
    pad_id: int = 0
    detector: NanoDetectorConfig | None = None

    @property
    def pooling(self) -> str:
        """Of both towers; part of a bundle's identity."""
        return "avg/weighted"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> NanoConfig:
        """Rebuild from `to_json`. Raises TypeError on a field that does not exist."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        if values.get("detector") is not None:
            values["detector"] = NanoDetectorConfig(**values["detector"])
        return cls(**values)


class ConvBlock(nn.Module):
    """x + conv(relu(conv(x))), batch-normalised; the norms fold into the convolutions at export."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class NanoImage(nn.Module):
    """(N, 3, S, S) pixels -> (N, D), not yet of unit length."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for width, depth in zip(config.widths, config.depths, strict=True):
            down = nn.Conv2d(previous, width, 3, stride=2, padding=1, bias=False)
            layers += [down, nn.BatchNorm2d(width), nn.ReLU(), *(ConvBlock(width) for _ in range(depth))]
            previous = width
        self.stages = nn.Sequential(*layers)
        self.projection = nn.Linear(previous, config.embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projection(self.stages(pixels).mean(dim=(2, 3)))  # type: ignore[no-any-return]


class NanoText(nn.Module):
    """(N, L) ids -> (N, D), not yet of unit length. The order of the subwords and the amount of padding do not matter."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        width = config.text_width
        self.pad_id = config.pad_id
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.weight = nn.Linear(width, 1)  # how much a subword counts
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
            )
            for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.embed_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)  # (N, L, W)
        weight = self.weight(x).masked_fill((input_ids == self.pad_id)[..., None], -1e4).softmax(dim=1)
        x = (weight * x).sum(dim=1)
        for layer in self.layers:
            x = x + layer(x)
        return self.projection(self.norm(x))  # type: ignore[no-any-return]


class NanoCLIP(DualEncoder):
    """Both towers, the logarithm of the scale of their cosine, and, where the config has one, a detection head on the image tower."""

    apart = ("detector.",)

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        self.image = NanoImage(config)
        self.text = NanoText(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = None
        self.detector = None if config.detector is None else NanoDetector(config.detector, self.image)
