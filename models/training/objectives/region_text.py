"""A contrast between the regions of a batch's pictures and the texts that name them: CLOC's region-text loss."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

SAME = 0.9  # cosine of two texts above which they are held to say the same: no negatives of each other
FEW = 0.01  # share of all other texts that are left as negatives, below which is warned: nothing can be learned from so few

log = logging.getLogger(__name__)


def region_text(regions: Tensor, region_texts: Tensor, named: Tensor, scale: Tensor) -> Tensor:
    """Find each region's text among the texts of all regions in the batch, and each text's region among the regions.

    Args:
        regions: (B, M, D) region embeddings, unit length; M is the most that a picture has.
        region_texts: (B, M, D) text embeddings, unit length; text (i, m) names region (i, m).
        named: (B, M) integers, 1 where there is a region, 0 for padding, which counts nowhere.
        scale: () factor on cosine similarity, after exp.
    Returns:
        () loss in nats, mean of both directions, times the share of pictures that have a region (the paper's lambda); 0 where
        none has.
    Raises:
        ValueError: shapes do not fit.
    Source: Chen et al. 2024 (CLOC), arXiv:2410.02746, section 3.2. The texts that are left out of the negatives are so in both
        directions; which they are takes no gradient. Warned of once: that they are nearly all.
    """
    if regions.ndim != 3 or regions.shape != region_texts.shape or named.shape != regions.shape[:2]:
        raise ValueError(
            f"want (B, M, D), (B, M, D), (B, M), got {tuple(regions.shape)}, {tuple(region_texts.shape)}, {tuple(named.shape)}"
        )
    here = named.bool()
    region, text = regions[here], region_texts[here]  # (R, D) each
    if not len(region):
        return (
            regions.sum() + region_texts.sum()
        ) * 0  # of the graph, so that a step without regions is a step
    logits = scale * region @ text.T  # (R, R), row = region
    with torch.no_grad():
        apart = (text @ text.T <= SAME).fill_diagonal_(True)
        left, others = int(apart.sum()) - len(text), len(text) * (len(text) - 1)
    if left < FEW * others:
        _tell()
    logits = logits.masked_fill(~apart, -torch.inf)
    target = torch.arange(len(region), device=region.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss * here.any(dim=1).to(loss.dtype).mean()


@cache  # once in a process
def _tell() -> None:
    log.warning(
        f"region_text: the texts of a batch's regions are nearly all alike (cosine above {SAME}), so that fewer than {FEW:.0%} are left "
        "as negatives. An untrained text tower does so at first; if the loss stays near 0, name regions by texts that differ, or train "
        "the text tower with info_nce first."
    )
