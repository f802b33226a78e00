"""nano's detector: the image tower's own convolutions on a pyramid of the picture, and a small head over them.

The tower was trained on drawings that fill 64 pixels. At full size, half and a quarter of a 256-pixel scene, an object of any
size is somewhere near that, and its channels mean there what they mean to the classifier. So a region's embedding is, as the
tower's own, a projected mean over the cells around it: names that never had a box are found as far as the classifier knows them.
Shapes: N pictures, S side, C channels; of each scale the last stage's input (N, C, S/8, S/8), "fine", and its output, "coarse", of half
that side (with four stages, as nano has).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.models.detector import Regions

if TYPE_CHECKING:
    from edgeclip.models.nano import NanoImage

POOLS = (1, 3, 5)  # cells across, over which a region's embedding may be averaged
_SCALE, _BIAS, _RARE = 20.0, -8.0, -4.6  # where scale, bias and the logit of the objectness start


@dataclass(frozen=True)
class NanoDetectorConfig:
    """Sizes of the detection head."""

    image_size: int = 256  # S, a multiple of 16 at the smallest scale
    scales: int = 3  # of the pyramid: the whole size, a half, a quarter; as many grids
    width: int = 64
    blocks: int = 2


class Block(nn.Module):
    """x + conv(relu(conv(x))), without norms: three grids of unlike statistics share it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class NanoHead(nn.Module):
    """Features of every scale, finest first -> Regions: one for each cell of each grid, finest grid first."""

    centres: Tensor
    strides: Tensor

    def __init__(
        self, config: NanoDetectorConfig, fine: int, coarse: int, embed_dim: int, stride: int
    ) -> None:
        super().__init__()
        width = config.width
        self.config, self.stride = config, stride
        self.fine = nn.ModuleList(nn.Conv2d(fine, width, 1) for _ in range(config.scales))
        self.coarse = nn.ModuleList(nn.Conv2d(coarse, width, 1) for _ in range(config.scales))
        self.finer = nn.ModuleList(nn.Conv2d(coarse, width, 1) for _ in range(config.scales - 1))
        self.merge = nn.Conv2d(width, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(config.blocks)))
        self.output = nn.Conv2d(width, 4 + 3 + len(POOLS), 1)
        self.projection = nn.Conv2d(coarse, embed_dim, 1)
        self.correction = nn.Conv2d(width, embed_dim, 1)
        for layer in (self.output, self.correction):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        centres, strides = grid(config, stride)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    def start_from(self, projection: nn.Linear) -> None:
        """Let a region's embedding begin as the classifier's own: its projection, of a mean."""
        with torch.no_grad():
            self.projection.weight.copy_(projection.weight[:, :, None, None])
            self.projection.bias.copy_(projection.bias)  # type: ignore[union-attr]

    def forward(self, features: Sequence[tuple[Tensor, Tensor]]) -> Regions:
        above: Tensor | None = None
        outputs, embeddings = [], []
        for scale in reversed(range(len(features))):
            fine, coarse = features[scale]
            x = self.fine[scale](fine) + _twice(self.coarse[scale](coarse))
            if scale:
                x = x + self.finer[scale - 1](features[scale - 1][1])
            if above is not None:
                x = x + _twice(above)
            above = torch.relu(self.merge(torch.relu(x)))
            x = self.blocks(above)
            output = self.output(x)
            source = features[scale - 1][1] if scale else _twice(coarse)
            mixed = self.projection(_pooled(source, output[:, 7:].softmax(1))) + self.correction(x)
            outputs.append(output.flatten(2))
            embeddings.append(mixed.flatten(2))
        output = torch.cat(outputs[::-1], 2).transpose(1, 2)
        distances = F.softplus(output[..., :4] + 2) * self.strides
        corners = torch.cat([self.centres - distances[..., :2], self.centres + distances[..., 2:]], -1)
        return Regions(
            boxes=corners / self.config.image_size,
            embeddings=torch.cat(embeddings[::-1], 2).transpose(1, 2),
            scales=F.softplus(output[..., 4] + _SCALE),
            biases=output[..., 5] + _BIAS,
            objectness=torch.sigmoid(output[..., 6] + _RARE),
        )


class NanoDetector(nn.Module):
    """(N, 3, S, S) pixels -> Regions. The image tower belongs to the model: it is read here, never trained or saved."""

    def __init__(self, config: NanoDetectorConfig, image: NanoImage) -> None:
        super().__init__()
        self.config = config
        _, fine, coarse = split(image.stages)
        halvings = sum(isinstance(layer, nn.Conv2d) for layer in image.stages)
        self.head = NanoHead(config, fine, coarse, image.projection.out_features, 2 ** (halvings - 1))
        self._image = (image,)  # in a tuple: not one of this module's own

    @property
    def image(self) -> NanoImage:
        """The tower whose convolutions it looks through."""
        return self._image[0]

    def features(self, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What the head looks at."""
        return pyramid(self.image.stages, pixels, self.config.scales)

    def forward(self, pixels: Tensor) -> Regions:
        return self.head(self.features(pixels))  # type: ignore[no-any-return]


def pyramid(stages: nn.Sequential, pixels: Tensor, scales: int) -> list[tuple[Tensor, Tensor]]:
    """(N, 3, S, S) -> for the whole size, a half and so on: fine and coarse features."""
    last, _, _ = split(stages)
    found = []
    for scale in range(scales):
        if scale:
            pixels = F.avg_pool2d(pixels, 2)
        fine = stages[:last](pixels)
        found.append((fine, stages[last:](fine)))
    return found


def split(stages: nn.Sequential) -> tuple[int, int, int]:
    """-> where the last stage begins, the channels before and after it."""
    last = max(i for i, layer in enumerate(stages) if isinstance(layer, nn.Conv2d))
    down = stages[last]
    assert isinstance(down, nn.Conv2d)
    return last, down.in_channels, down.out_channels


def grid(config: NanoDetectorConfig, stride: int) -> tuple[Tensor, Tensor]:
    """-> centres (Q, 2) x, y and strides (Q, 1) of every cell, pixels; sums of few powers of two, exact in fp16.

    Args:
        stride: pixels between the centres of the finest grid; each further grid doubles it.
    """
    centres, strides = [], []
    for scale in range(config.scales):
        stride = stride * 2 if scale else stride
        place = (torch.arange(config.image_size // stride) + 0.5) * stride
        y, x = torch.meshgrid(place, place, indexing="ij")
        centres.append(torch.stack([x, y], -1).view(-1, 2))
        strides.append(torch.full((len(place) ** 2, 1), float(stride)))
    return torch.cat(centres), torch.cat(strides)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _pooled(x: Tensor, shares: Tensor) -> Tensor:
    """Means over POOLS cells around each cell, mixed by `shares` (N, 3, h, w), which add up to 1."""
    total = x * shares[:, :1]
    for i, size in enumerate(POOLS[1:], 1):
        mean = F.avg_pool2d(x, size, stride=1, padding=size // 2, count_include_pad=False)
        total = total + mean * shares[:, i : i + 1]
    return total
