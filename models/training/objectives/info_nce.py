"""Symmetric InfoNCE: CLIP's objective."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(image: Tensor, text: Tensor, scale: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Find each picture's text among the batch's texts, and each text's picture among the pictures.

    Args:
        image: (B, D) image embeddings, unit length.
        text: (B, D) text embeddings, unit length; row i describes image i.
        scale: () factor on cosine similarity, after exp.
        label_smoothing: 0 to below 1, the share of each target that is spread evenly over the batch.
    Returns:
        () loss in nats, mean of both directions; ln B when nothing is told apart.
    Raises:
        ValueError: image and text are not both (B, D).
    Source: Radford et al. 2021, arXiv:2103.00020, figure 3; van den Oord et al. 2018, arXiv:1807.03748.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"want both (B, D), got {tuple(image.shape)} and {tuple(text.shape)}")
    logits = scale * image @ text.T  # (B, B), row = image
    target = torch.arange(len(image), device=image.device)
    there, back = (F.cross_entropy(x, target, label_smoothing=label_smoothing) for x in (logits, logits.T))
    return (there + back) / 2
