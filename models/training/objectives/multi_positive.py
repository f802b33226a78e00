"""InfoNCE for batches in which several pairs say the same."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def multi_positive(image: Tensor, text: Tensor, groups: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE whose target is shared evenly by all pairs of a group, so that equal captions are no negatives.

    Args:
        image: (B, D) image embeddings, unit length.
        text: (B, D) text embeddings, unit length; row i describes image i.
        groups: (B,) integers; i and j belong together where groups[i] == groups[j].
        scale: () factor on cosine similarity, after exp.
    Returns:
        () loss in nats, mean of both directions. Its least value is the mean of ln(size of the row's group), not 0.
    Raises:
        ValueError: shapes do not fit.
    Source: Yang et al. 2022 (UniCL), arXiv:2204.03610, equations 2 to 4; Khosla et al. 2020, arXiv:2004.11362 (L_out).
    """
    if image.ndim != 2 or image.shape != text.shape or groups.shape != image.shape[:1]:
        raise ValueError(
            f"want (B, D), (B, D), (B,), got {tuple(image.shape)}, {tuple(text.shape)}, {tuple(groups.shape)}"
        )
    logits = scale * image @ text.T  # (B, B), row = image
    together = (groups[:, None] == groups[None, :]).to(logits.dtype)
    target = together / together.sum(dim=1, keepdim=True)  # symmetric: rows of one group are equal
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
