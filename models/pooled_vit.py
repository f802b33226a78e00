"""`ViTModel` of transformers as an image tower: its pooler, a linear layer and tanh, stands before the projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgeclip.models.clip import ImageTower
from edgeclip.models.config import ImageConfig


@dataclass(frozen=True)
class PooledVitConfig(ImageConfig):
    """A vision transformer with that pooler."""

    KIND: ClassVar[str] = "pooled_vit"


class PooledVitTower(ImageTower):
    """Pixels to one embedding per picture."""

    def __init__(self, config: PooledVitConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.pooler = nn.Linear(config.blocks.width, config.blocks.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pixels -> (N, D), not yet of unit length."""
        assert self.projection is not None
        pooled = torch.tanh(self.pooler(self.pool(self.tokens(pixels))))
        return self.projection(pooled)  # type: ignore[no-any-return]
