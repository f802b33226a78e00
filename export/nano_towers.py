"""Traceable towers of NanoCLIP: batch norms folded into their convolutions, no attention."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgeclip.models.nano import ConvBlock, NanoImage, NanoText


def image_tower(tower: NanoImage) -> tuple[nn.Module, dict[str, int]]:
    """-> (pixels (N, 3, S, S) -> (N, D), expected operators)."""
    folded = copy.deepcopy(tower).eval()
    folded.stages = _folded(folded.stages)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in folded.modules())
    return folded, {"Conv": convolutions, "BatchNormalization": 0, "linears": 1, "ReduceMean": 1}


def text_tower(tower: NanoText) -> tuple[nn.Module, dict[str, int]]:
    """-> (input_ids (N, L) -> (N, D), expected operators)."""
    norms = sum(isinstance(module, nn.LayerNorm) for module in tower.modules())
    linears = sum(isinstance(module, nn.Linear) for module in tower.modules())
    return tower, {"LayerNormalization": norms, "linears": linears, "Softmax": 1}


def _folded(stages: nn.Sequential) -> nn.Sequential:
    layers: list[nn.Module] = []
    for layer in stages:
        if isinstance(layer, nn.BatchNorm2d):
            convolution = layers[-1]
            assert isinstance(convolution, nn.Conv2d)
            layers[-1] = fuse_conv_bn_eval(convolution, layer)
            continue
        if isinstance(layer, ConvBlock):
            layer.conv1, layer.norm1 = fuse_conv_bn_eval(layer.conv1, layer.norm1), nn.Identity()  # type: ignore[assignment]
            layer.conv2, layer.norm2 = fuse_conv_bn_eval(layer.conv2, layer.norm2), nn.Identity()  # type: ignore[assignment]
        layers.append(layer)
    return nn.Sequential(*layers)
