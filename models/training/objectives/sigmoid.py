"""The sigmoid objective of SigLIP."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Ask of every image-text pair in the batch: do these two belong together?

    Args:
        image: (B, D) image embeddings, unit length.
        text: (B, D) text embeddings, unit length; row i describes image i.
        scale: () factor on cosine similarity, after exp. Starts at 10.
        bias: () added to every logit. Starts at -10: the B*B - B negatives must not swamp the first steps.
    Returns:
        () loss in nats: summed over B*B pairs, divided by B. Compare equal B only.
    Raises:
        ValueError: image and text are not both (B, D).
    Source: Zhai et al. 2023, arXiv:2303.15343, Algorithm 1.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"want both (B, D), got {tuple(image.shape)} and {tuple(text.shape)}")
    logits = scale * image @ text.T + bias  # (B, B), row = image
    sign = 1 - 2 * torch.eye(len(image), device=image.device)  # -1 where the pair matches
    return F.softplus(sign * logits).sum() / len(image)
