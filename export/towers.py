"""The traceable forward of each model class, beside the source model and never inside it.

A tower here takes what the bundle's contract says and gives unit rows:
pixels (N, 3, H, W) float32 or input_ids (N, L) int32 -> embeddings (N, D) float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from edgeclip.bundle import Port
from edgeclip.errors import SourceError
from edgeclip.export import clip_towers, nano_towers
from edgeclip.export.targets import FLAVOURS, PORTABLE, Flavour
from edgeclip.models.clip import Clip
from edgeclip.models.nano import NanoCLIP
from edgeclip.models.source import Source

Kind = Literal["image", "text"]

# Model class -> module. Each offers image_tower(model), text_tower(model) -> (module without the norm of its rows,
# operators expected in its graph), and ATTENTION (whether it has any).
FAMILIES: Mapping[type[nn.Module], ModuleType] = {Clip: clip_towers, NanoCLIP: nano_towers}

SMALLEST_NORM = 1e-6  # an all-zero row stays zero instead of becoming NaN
_EXAMPLE_BATCH = 2  # torch.export makes a size of 0 or 1 a constant


class UnitRows(nn.Module):
    """A tower and the L2 norm of its rows, computed in fp32 whatever the tower's precision is."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, x: Tensor) -> Tensor:
        """-> (N, D) float32, each row of L2 norm 1."""
        rows = self.tower(x).float()
        norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        unit: Tensor = rows / norms.clamp_min(SMALLEST_NORM)
        return unit


@dataclass(frozen=True)
class TracedTower:
    """One tower ready to be traced."""

    kind: Kind
    module: nn.Module
    example: Tensor  # a batch of two
    input: Port
    output: Port
    expected: Mapping[str, int]  # what its graph must hold, see onnx_graph.count
    flavours: tuple[Flavour, ...]


def tower_of(source: Source, kind: Kind, flavours: tuple[str, ...] = tuple(FLAVOURS)) -> TracedTower:
    """Build a tower's traceable forward. A family without attention has one flavour: the portable one.

    Raises:
        SourceError: no traceable forward is known for the model's class.
    """
    family = FAMILIES.get(type(source.model))
    if family is None:
        known = ", ".join(cls.__name__ for cls in FAMILIES)
        raise SourceError(
            f"{source.spec}: cannot export a {type(source.model).__name__}, expected one of {known}."
        )
    if kind == "image":
        height, width = source.preprocessing.size
        port = Port("pixels", "float32", ("N", 3, height, width))
        example = torch.zeros(_EXAMPLE_BATCH, 3, height, width)
        tower, expected = family.image_tower(source.model)
    else:
        length = source.text.context_length
        port = Port("input_ids", "int32", ("N", "L" if source.text.dynamic_length else length))
        example = torch.zeros(_EXAMPLE_BATCH, length, dtype=torch.int32)
        tower, expected = family.text_tower(source.model)
    chosen = [FLAVOURS[name] for name in flavours]
    if not family.ATTENTION:
        chosen = [Flavour("none", PORTABLE.opset, PORTABLE.ir_version, PORTABLE.requires)]
    output = Port("embeddings", "float32", ("N", source.embedding_dim))
    module = UnitRows(tower).eval()
    return TracedTower(kind, module, example, port, output, expected, tuple(chosen))
