"""Traceable towers of NanoCLIP: batch norms folded into their convolutions, no attention."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgeclip.export.detector_towers import detector_ports
from edgeclip.export.form import EXAMPLE_BATCH, Form, unit
from edgeclip.models.nano import ConvBlock, NanoImage, NanoText
from edgeclip.models.nano_detector import NanoDetector, pyramid
from edgeclip.models.source import Source


def image_tower(tower: NanoImage) -> tuple[nn.Module, dict[str, int]]:
    """-> (pixels (N, 3, S, S) -> (N, D), expected operators)."""
    traced = copy.deepcopy(tower).eval()
    traced.stages = folded(traced.stages)
    return traced, {"Conv": _convolutions(traced), "BatchNormalization": 0, "linears": 1, "ReduceMean": 1}


def text_tower(tower: NanoText) -> tuple[nn.Module, dict[str, int]]:
    """-> (input_ids (N, L) -> (N, D), expected operators)."""
    norms = sum(isinstance(module, nn.LayerNorm) for module in tower.modules())
    linears = sum(isinstance(module, nn.Linear) for module in tower.modules())
    return tower, {"LayerNormalization": norms, "linears": linears, "Softmax": 1}


def detector(source: Source) -> Form:
    """The form of NanoDetector. Its convolutions are the image tower's own, bit for bit, so that a bundle stores them once."""
    tower = source.model.detector
    assert isinstance(tower, NanoDetector)
    module = _Detector(tower).eval()
    regions, scales = len(tower.head.centres), tower.config.scales
    inputs, outputs = detector_ports(source, regions, objectness=True)
    shared = (
        tower.head.merge,
        tower.head.blocks,
        tower.head.output,
        tower.head.projection,
        tower.head.correction,
    )
    again = _convolutions(module.stages) + sum(
        map(_convolutions, shared)
    )  # those that every scale goes through
    counts = {
        "Conv": _convolutions(module) + (scales - 1) * again,
        "BatchNormalization": 0,
        "Softmax": scales,
        "linears": 0,
    }
    side = tower.config.image_size
    return Form(module, (torch.zeros(EXAMPLE_BATCH, 3, side, side),), inputs, outputs, counts)


class _Detector(nn.Module):
    def __init__(self, tower: NanoDetector) -> None:
        super().__init__()
        self.stages = folded(tower.image.stages)
        self.head, self.scales = tower.head, tower.config.scales

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """-> boxes (N, Q, 4), region embeddings (N, Q, D), scales (N, Q), biases (N, Q), objectness (N, Q)."""
        found = self.head(pyramid(self.stages, pixels, self.scales))
        return (found.boxes, unit(found.embeddings), found.scales, found.biases, found.objectness)


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in module.modules())


def folded(stages: nn.Sequential) -> nn.Sequential:
    """A copy whose batch norms, as they are at inference, stand in its convolutions."""
    layers: list[nn.Module] = []
    for layer in copy.deepcopy(stages).eval():
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
