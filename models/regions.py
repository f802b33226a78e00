"""A CLIP whose patches answer for themselves: a dense map of a picture, and boxes pooled from it, without a detector.

The last block's attention is replaced by its value path, so that a patch token keeps to its place and still lies in the space of the
texts; a box is the mean of the map under it. Sources: Wu et al. 2023 (CLIM), arXiv:2312.11376, and Wu et al. 2023 (CLIPSelf),
arXiv:2310.01403, for the map; He et al. 2017, arXiv:1703.06870, for RoIAlign.
Shapes: N pictures, T patches (row by row), R boxes, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.errors import InputError
from edgeclip.models.clip import Block, Clip, ImageTower
from edgeclip.models.config import ClipConfig
from edgeclip.models.source import Source

LastBlock = Literal["value", "attention"]
# A box this little over a whole number of cells (2/7 - 1/7 is, in float32) is sampled as that number: one sample more would pull a
# quarter of a neighbour's weight into a box that lies exactly on its patches.
HAIR = 1e-4


@dataclass(frozen=True)
class RegionConfig(ClipConfig):
    """A CLIP, and what its last block does for the map."""

    last_block: LastBlock = "value"  # "attention": tokens stay mixed, as the tower was trained

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` reads it back."""
        return {**super().to_json(), "last_block": self.last_block}


class RegionEncoder(Clip):
    """A CLIP with two more views of its image tower, which share every weight with it: `tokens`, and `regions` of those."""

    config: RegionConfig

    @classmethod
    def of(cls, model: Clip, last_block: LastBlock = "value") -> RegionEncoder:
        """The same towers, not a copy. Raises InputError for an image tower without a space of patches."""
        if reason := _unfit(model):
            raise InputError(reason)
        config = {field.name: getattr(model.config, field.name) for field in fields(ClipConfig)}
        with torch.device("meta"):
            made = cls(RegionConfig(**config, last_block=last_block))
        made.image, made.text = model.image, model.text
        made.logit_scale, made.logit_bias = model.logit_scale, model.logit_bias
        return made

    @property
    def tokens(self) -> DenseMap:
        """Pixels to the map."""
        assert isinstance(self.image, ImageTower)
        return DenseMap(self.image, self.config.last_block)

    @property
    def regions(self) -> RoiPool:
        """The map and boxes to embeddings."""
        assert isinstance(self.image, ImageTower)
        return RoiPool(self.image.config.grid)


class DenseMap(nn.Module):
    """(N, 3, H, W) normalised pixels -> (N, T, D), each row of unit length."""

    def __init__(self, tower: ImageTower, last_block: LastBlock) -> None:
        super().__init__()
        self.tower, self.last_block = tower, last_block

    def forward(self, pixels: Tensor) -> Tensor:
        tower = self.tower
        x = tower.embedded(pixels)
        for i, block in enumerate(tower.blocks, 1):
            assert isinstance(block, Block)
            if i == len(tower.blocks) and self.last_block == "value":
                x = x + block.attention.values(block.norm1(x))
                x = x + block.mlp(block.norm2(x))
            else:
                x = block(x)
        x = x[:, int(tower.config.class_token) :]
        if tower.norm_post is not None:
            x = tower.norm_post(x)
        return F.normalize(x if tower.projection is None else tower.projection(x), dim=-1)


class RoiPool(nn.Module):
    """(N, T, D) map and (N, R, 4) boxes, xyxy in 0-1 of the input -> (N, R, D), not of unit length: RoIAlign to one cell."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, tokens: Tensor, boxes: Tensor) -> Tensor:
        return roi_weights(boxes, self.grid) @ tokens


def roi_weights(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of each patch a box holds by RoIAlign: one cell, half-pixel, adaptive sampling, bilinear, mean.

    A mean over samples of rows times samples of columns is the product of two means, so that a box needs two small weight vectors
    instead of a gather, and every box of every picture is one matrix product. What lies beyond the input is not looked at; a box
    without an extent is the bilinear sample at its place.

    Args:
        boxes: (N, R, 4) xyxy in 0-1 of the input.
        grid: (rows, columns) of patches.
    Returns:
        (N, R, rows * columns), each row sums to 1.
    """
    rows, columns = grid
    cells = torch.tensor([columns, rows], dtype=boxes.dtype, device=boxes.device)[:, None]  # along x, along y
    order = torch.arange(max(grid), dtype=boxes.dtype, device=boxes.device)
    low, high = (torch.unflatten(boxes.clamp(0, 1), -1, (2, 2, 1)) * cells).unbind(-3)  # (N, R, 2, 1)
    size = high - low
    count = torch.minimum(torch.ceil(size - HAIR).clamp_min(1), cells)  # one sample a cell, as equal steps
    at = low + (order + 0.5) * size / count - 0.5  # (N, R, 2, samples); a cell's centre is a whole number
    at = torch.minimum(at.clamp_min(0), cells - 1)
    near = (1 - (at[..., None] - order).abs()).clamp_min(0)  # (N, R, 2, samples, cells)
    taken = (order < count).to(boxes.dtype) / count
    along, down = (near * taken[..., None]).sum(-2).unbind(-2)
    return (down[..., :rows, None] * along[..., None, :columns]).flatten(-2)


def with_regions(source: Source) -> Source:
    """The same model with a dense map and boxes, untrained for it. One that asks regions already comes back as it is.

    Raises:
        InputError: its image tower has no space of patches.
    """
    if getattr(source.model, "regions", None) is not None:
        return source
    if not isinstance(source.model, Clip) or (reason := _unfit(source.model)):
        reason = reason if isinstance(source.model, Clip) else f"it is a {type(source.model).__name__}"
        raise InputError(f"--regions: {source.spec}: {reason}. Export it without.")
    return replace(source, model=RegionEncoder.of(source.model))


def whole(spec: Preprocessing) -> Preprocessing:
    """How a picture is prepared for its regions: as for classifying, but nothing of it is cropped away.

    What pads it to the tower's shape is the mean colour, zeros for the tower. One that keeps the whole picture comes back as it is.
    """
    if spec.mode != "shortest_crop":
        return spec
    red, green, blue = (round(255 * level) for level in spec.mean)
    return replace(spec, mode="pad", resize=0, pad_color=(red, green, blue))


def _unfit(model: Clip) -> str:
    """Why a model's patches have no embeddings; "" where they have."""
    tower = model.image
    if type(tower) is not ImageTower:
        return (
            f"boxes are pooled from a plain vision transformer, its image tower is a {type(tower).__name__}"
        )
    if tower.head is not None:
        return f"its image tower pools by {tower.config.pool!r}, and patches have embeddings only where that is 'cls' or 'avg'"
    return ""
