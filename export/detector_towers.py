"""Traceable detectors: pixels -> boxes and what they hold. See form.py.

What differs from the source's own forward, none of which changes the function: all that clip_towers.py changes, scale and shift
are one product, and elu(x) + 1 is written as exp(min(x, 0)) + max(x, 0), which loses nothing near -1 and needs no operator
that TensorRT has under conditions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.bundle import Port
from edgeclip.errors import SourceError
from edgeclip.export.clip_towers import TracedImage, expected
from edgeclip.export.form import EXAMPLE_BATCH, Form, unit
from edgeclip.export.traced import Linear
from edgeclip.models.detector import Detector, RegionHead, corners
from edgeclip.models.source import Source


def detector_ports(
    source: Source, regions: int, objectness: bool
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """-> (inputs, outputs) of any detector of `regions` regions a picture."""
    spec = (source.detection and source.detection.preprocessing) or source.preprocessing
    if spec is None:
        raise SourceError(f"{source.spec}: a detector needs to know how its pictures are prepared.")
    shapes: dict[str, tuple[int, ...]] = {
        "boxes": (4,), "region_embeddings": (source.embedding_dim,), "logit_scales": (), "logit_biases": (), "objectness": (),
    }  # fmt: skip
    if not objectness:
        del shapes["objectness"]
    outputs = tuple(Port(name, "float32", ("N", regions, *shape)) for name, shape in shapes.items())
    return (Port("pixels", "float32", ("N", 3, *spec.size)),), outputs


def owl(source: Source) -> Form:
    """The form of models/detector.py's Detector."""
    detector = source.model.detector
    assert isinstance(detector, Detector)
    grid = detector.config.image.grid
    inputs, outputs = detector_ports(source, grid[0] * grid[1], detector.objectness_head is not None)
    module = _Owl(detector).eval()
    counts = expected(module, detector.config.image.blocks.layers)
    example = torch.zeros(EXAMPLE_BATCH, 3, *detector.config.image_size)
    return Form(module, (example,), inputs, outputs, counts)


class _Head(nn.Module):
    def __init__(self, head: RegionHead) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = Linear(head.fc1), Linear(head.fc2), Linear(head.fc3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))
        return y


class _Owl(nn.Module):
    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.trunk = TracedImage(detector.trunk)
        self.norm = detector.norm
        self.box_head = _Head(detector.box_head)
        self.box_bias = nn.Parameter(detector.box_bias.clone(), requires_grad=False)  # for this grid, in fp32
        head = detector.objectness_head
        self.objectness_head = None if head is None else _Head(head)
        self.embedding = Linear(detector.embedding)
        self.rating = Linear(detector.scale, detector.shift)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """-> boxes (N, Q, 4), region embeddings (N, Q, D), scales (N, Q), biases (N, Q)[, objectness (N, Q)]."""
        x = self.trunk.tokens(pixels)
        if self.trunk.norm_post is not None:
            x = self.trunk.norm_post(x)
        x = self.norm(x[:, 1:] * x[:, :1])
        boxes = corners(torch.sigmoid(self.box_head(x).float() + self.box_bias))
        scale, shift = self.rating(x).float().split(1, dim=-1)
        scales = torch.exp(-F.relu(-scale)) + F.relu(scale)
        found = (boxes, unit(self.embedding(x)), scales[..., 0], (scales * shift)[..., 0])
        if self.objectness_head is None:
            return found
        return (*found, torch.sigmoid(self.objectness_head(x).float()[..., 0]))
