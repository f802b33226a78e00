"""Regions of pictures, by whatever model embeds them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from edgeclip.errors import TrainingError
from edgeclip.models.source import DualEncoder


def region_towers(model: DualEncoder) -> tuple[Any, Any]:
    """The model's `tokens` and `regions`.

    Raises:
        TrainingError: it has none.
    """
    tokens, regions = (getattr(model, name, None) for name in ("tokens", "regions"))
    if tokens is None or regions is None:
        raise TrainingError(
            f"encode: a {type(model).__name__} embeds no regions. Set model=regions or model=prompter, which start from any CLIP."
        )
    return tokens, regions


def region_embeddings(model: DualEncoder, pixels: Tensor, boxes: Tensor) -> Tensor:
    """(N, 3, H, W) and (N, R, 4) xyxy in 0-1 -> (N, R, D) float32, unit length. Raises TrainingError for a model without regions."""
    tokens, regions = region_towers(model)
    return F.normalize(regions(tokens(pixels), boxes).float(), dim=-1)
