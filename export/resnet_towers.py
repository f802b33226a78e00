"""Traceable form of CLIP's ResNets.

What differs from the source's own forward, none of which changes the function: each BatchNorm is folded into its convolution;
the attention pool computes its one query only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.export.clip_towers import Attend, expected
from edgeclip.export.traced import Linear
from edgeclip.models.resnet import AttentionPool, BatchNorm, Bottleneck, ConvNorm, ResNetTower


def image_tower(tower: ResNetTower) -> tuple[nn.Module, dict[str, int]]:
    """-> (pixels (N, 3, H, W) -> (N, D), expected operators)."""
    traceable = _Image(tower)
    convs = sum(isinstance(module, nn.Conv2d) for module in traceable.modules())
    return traceable, {**expected(traceable, 0), "Conv": convs, "BatchNormalization": 0, "ReduceMean": 1}


def fold(pair: ConvNorm) -> nn.Conv2d:
    """One convolution with a bias that does what convolution and norm do in eval mode. Computed in float64."""
    conv, norm = pair.conv, pair.norm
    with torch.no_grad():
        gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + BatchNorm.EPS)
        weight = conv.weight.double() * gain[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * gain
    size = conv.kernel_size[0]
    folded = nn.Conv2d(
        conv.in_channels, conv.out_channels, size, conv.stride[0], padding=size // 2, device="meta"
    )
    folded.weight, folded.bias = (nn.Parameter(x.float(), requires_grad=False) for x in (weight, bias))
    return folded


class _Block(nn.Module):
    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.stride = block.stride
        self.convs = nn.ModuleList(fold(pair) for pair in block.convs if isinstance(pair, ConvNorm))
        self.shortcut = None if block.shortcut is None else fold(block.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.convs
        y = F.relu(second(F.relu(first(x))))
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        return F.relu(third(y) + (x if self.shortcut is None else self.shortcut(x)))


class _Pool(nn.Module):
    def __init__(self, pool: AttentionPool) -> None:
        super().__init__()
        width = pool.q.in_features
        self.position = pool.position
        self.q = Linear(pool.q, scaled=width, scale=(width // pool.heads) ** -0.5)
        self.kv, self.out = Linear(pool.kv), Linear(pool.out)
        self.attend = Attend(pool.heads)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, W) -> (N, D)."""
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.position
        k, v = self.kv(x).chunk(2, dim=-1)
        y: Tensor = self.out(self.attend(self.attend.split(self.q(x[:, :1])), k, v))
        return y[:, 0]


class _Image(nn.Module):
    def __init__(self, tower: ResNetTower) -> None:
        super().__init__()
        self.stem = nn.ModuleList(fold(pair) for pair in tower.stem if isinstance(pair, ConvNorm))
        self.blocks = nn.ModuleList(_Block(block) for block in tower.blocks if isinstance(block, Bottleneck))
        self.pool = _Pool(tower.pool)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for conv in self.stem:
            x = F.relu(conv(x))
        x = F.avg_pool2d(x, 2)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.pool(x.flatten(2).transpose(1, 2))
        return y
