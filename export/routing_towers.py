"""Traceable towers that give what each expert counts for each token, for people to look at: the head "routing".

Every token is computed in every block, those too that the embedding's graph leaves out of its last one.
Shapes: N batch, R mixtures in their order, T tokens (of pictures the class token first; of texts the L of the text), W width, E the most
experts of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.export.clip_towers import ClassText, Text, TracedBlock, TracedImage, expected
from edgeclip.export.experts import DENSE, ExpertForm, TracedExperts
from edgeclip.models.clip import ImageTower, TextTower


def image_routing(tower: ImageTower) -> tuple[nn.Module, dict[str, int]]:
    """-> (pixels (N, 3, H, W) -> (N, R, T, E), expected operators). An expert that was not chosen or does not exist has 0."""
    traceable = _ImageRouting(tower)
    return traceable, expected(traceable, len(traceable.blocks))


def text_routing(tower: TextTower) -> tuple[nn.Module, dict[str, int]]:
    """-> (input_ids (N, L) int32 -> (N, R, L, E), expected operators). Tokens that the embedding does not depend on have 0."""
    traceable = (_ClassTextRouting if tower.config.pool == "class" else _TextRouting)(tower)
    return traceable, expected(traceable, len(traceable.blocks))


def _until_last_router(blocks: nn.ModuleList) -> nn.ModuleList:
    """The blocks that are computed: the experts of the last mixture, and what stands behind it, are not."""
    last = max(
        i
        for i, block in enumerate(blocks)
        if isinstance(block, TracedBlock) and isinstance(block.mlp, TracedExperts)
    )
    blocks[last].mlp.experts = nn.ModuleList()  # type: ignore[union-attr]
    return blocks[: last + 1]


def _shares(blocks: nn.ModuleList, x: Tensor, mask: Tensor | None) -> Tensor:
    """(N, T, W) that enter the first block -> (N, R, T, E)."""
    found: list[Tensor] = []
    for i, block in enumerate(blocks, 1):
        assert isinstance(block, TracedBlock)
        x = block.attended(x, mask, None)
        y = block.norm2(x)
        if isinstance(block.mlp, TracedExperts):
            found.append(block.mlp.shares(y))
        if i < len(blocks):
            x = x + (block.mlp.mix(y, found[-1]) if isinstance(block.mlp, TracedExperts) else block.mlp(y))
    most = max(shares.shape[-1] for shares in found)
    padded = [
        F.pad(shares, (0, most - shares.shape[-1])) if shares.shape[-1] < most else shares for shares in found
    ]
    return torch.stack(padded, dim=1)


class _ImageRouting(TracedImage):
    def __init__(self, tower: ImageTower) -> None:
        super().__init__(tower)
        self.blocks = _until_last_router(self.blocks)
        self.norm_post = self.head = self.projection = None

    def forward(self, pixels: Tensor) -> Tensor:
        return _shares(self.blocks, self._embedded(pixels), None)


class _TextRouting(Text):
    def __init__(self, tower: TextTower, form: ExpertForm = DENSE) -> None:
        super().__init__(tower, form)
        self.blocks = _until_last_router(self.blocks)
        self.projection = None
        del self.norm_final

    def forward(self, input_ids: Tensor) -> Tensor:
        x, mask, _, _ = self._entered(input_ids)
        shares, live = _shares(self.blocks, x, mask), self.live(input_ids)
        return (shares if live is None else shares * live[:, None])[:, :, : input_ids.shape[1]]


class _ClassTextRouting(ClassText, _TextRouting):  # reads its text as the first, runs as the second
    pass
