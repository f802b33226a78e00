"""Where is what a text names? CLOC's grounding loss."""

from __future__ import annotations

from torch import Tensor


def grounding(grounded: Tensor, boxes: Tensor, named: Tensor) -> Tensor:
    """The mean squared distance of the boxes that the texts were answered with from the true ones.

    Args:
        grounded: (B, M, 4) predicted xyxy, 0-1 of the input's sides.
        boxes: (B, M, 4) true xyxy.
        named: (B, M) integers, 1 where there is a region, 0 for padding, which counts nowhere.
    Returns:
        () mean over regions and the four numbers, times the share of pictures that have a region; 0 where none has.
    Raises:
        ValueError: shapes do not fit.
    Source: Chen et al. 2024 (CLOC), arXiv:2410.02746, section 3.3.
    """
    if grounded.shape != boxes.shape or grounded.shape != (*named.shape, 4):
        raise ValueError(
            f"want (B, M, 4), (B, M, 4), (B, M), got {tuple(grounded.shape)}, {tuple(boxes.shape)}, {tuple(named.shape)}"
        )
    here = named.bool()
    if not here.any():
        return grounded.sum() * 0
    loss = (grounded[here] - boxes[here]).square().mean()
    return loss * here.any(dim=1).to(loss.dtype).mean()
