"""CLIP's ResNet image tower: a three-layer stem, averages before strides, attention instead of an average at the end.

Shapes: N pictures, C channels, T cells of the last grid, W its width (32 times the stem's), D embedding width.
Source: Radford et al. 2021, arXiv:2103.00020, section 2.4; He et al. 2019, arXiv:1812.01187 (ResNet-D); Zhang 2019,
arXiv:1904.11486 (averages before strides).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 32  # pixels a cell of the last grid covers
EXPANSION = 4  # a residual block's outer width over its inner one


@dataclass(frozen=True)
class ResNetConfig:
    """The image tower: four stages of bottleneck blocks over a stem, pooled by one attention."""

    KIND: ClassVar[str] = "resnet"

    image_size: tuple[int, int]  # (H, W), pixels, multiples of 32
    layers: tuple[int, int, int, int]  # blocks of each stage
    width: int  # after the stem
    heads: int  # of the attention pool
    pool: Literal["attention"] = "attention"

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the last stage, (rows, columns)."""
        return self.image_size[0] // STRIDE, self.image_size[1] // STRIDE


class BatchNorm(nn.Module):
    """Batch normalisation of (N, C, H, W) with running statistics. nn.BatchNorm2d also counts batches, for nothing here."""

    EPS, MOMENTUM = 1e-5, 0.1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.running_mean, self.running_var = nn.Buffer(torch.zeros(width)), nn.Buffer(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.MOMENTUM,
            self.EPS,
        )


class ConvNorm(nn.Module):
    """Convolution without bias, then its norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = BatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """Residual block. Both ways average over stride x stride pixels where others would skip them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.convs = nn.ModuleList(
            [ConvNorm(inputs, width, 1), ConvNorm(width, width, 3), ConvNorm(width, EXPANSION * width, 1)]
        )
        changes = stride > 1 or inputs != EXPANSION * width
        self.shortcut = ConvNorm(inputs, EXPANSION * width, 1) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        first, second, third = self.convs
        y = F.relu(second(F.relu(first(x))))
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        y = third(y)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class AttentionPool(nn.Module):
    """The mean token attends to itself and to all cells."""

    def __init__(self, tokens: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(torch.randn(tokens, width) * width**-0.5)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, W) -> (N, D)."""
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.position
        n, t, w = x.shape
        q = self.q(x[:, :1]).view(n, 1, self.heads, w // self.heads).transpose(1, 2)
        k, v = self.kv(x).view(n, t, 2, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, w))  # type: ignore[no-any-return]


class ResNetTower(nn.Module):
    """Pixels to one embedding per picture."""

    def __init__(self, config: ResNetConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.ModuleList(
            [
                ConvNorm(3, width // 2, 3, stride=2),
                ConvNorm(width // 2, width // 2, 3),
                ConvNorm(width // 2, width, 3),
            ]
        )
        blocks, inputs = [], width
        for stage, depth in enumerate(config.layers):
            for i in range(depth):
                blocks.append(Bottleneck(inputs, width << stage, 2 if stage and not i else 1))
                inputs = EXPANSION * (width << stage)
        self.blocks = nn.ModuleList(blocks)
        rows, columns = config.grid
        self.pool = AttentionPool(1 + rows * columns, inputs, config.heads, embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pixels -> (N, D), not yet of unit length."""
        x = pixels
        for conv in self.stem:
            x = F.relu(conv(x))
        x = F.avg_pool2d(x, 2)
        for block in self.blocks:
            x = block(x)
        return self.pool(x.flatten(2).transpose(1, 2))  # type: ignore[no-any-return]
