"""What a traceable forward is that has ports of its own: more than one input, or outputs that are not one unit row a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeclip.bundle import Port

SMALLEST_NORM = 1e-6  # an all-zero row stays zero instead of becoming NaN
EXAMPLE_BATCH = 2  # torch.export makes a size of 0 or 1 a constant


@dataclass(frozen=True)
class Form:
    """A tower's traceable forward and its ports."""

    module: (
        nn.Module
    )  # takes `examples`, gives a tuple in the order of `outputs`; rows are of unit length already
    examples: tuple[Tensor, ...]  # a batch of two, in the order of `inputs`
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    expected: Mapping[str, int]  # what its graph must hold, see onnx_graph.count


def unit(rows: Tensor) -> Tensor:
    """(..., D) -> the same of L2 norm 1, computed in fp32 whatever the tower's precision is."""
    rows = rows.float()
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / norms.clamp_min(SMALLEST_NORM)
