"""What a student is asked of its teacher's embeddings: each a function of the same four tensors, to be weighted and added.

Throughout: `image`, `text` (B, D) are the student's, `teacher_image`, `teacher_text` (B, D) the teacher's in the student's width, all of
unit length, row i of each from pair i; `scale`, `teacher_scale` () are the factors on their cosines, after exp. The teacher's carry no
gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TRUTH = 0.5  # hybrid_contrast: the share of the truth in its targets, alpha of the paper


def feature_mse(image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor) -> Tensor:
    """Be where the teacher is: mean squared distance of embeddings.

    Returns:
        () mean over pairs of |image - teacher|^2 + |text - teacher|^2: 0 where equal, 4 where all are orthogonal. Summed over the
        D values, where a mean over them would be D times smaller.
    Raises:
        ValueError: shapes differ.
    Source: Yang et al. 2023 (CLIP-KD), arXiv:2307.12732, "FD", which does most of the work there.
    """
    _check(image, text, teacher_image, teacher_text)
    return ((image - teacher_image) ** 2 + (text - teacher_text) ** 2).sum(dim=-1).mean()


def feature_cosine(image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor) -> Tensor:
    """Point where the teacher points: 1 - cosine, mean of pictures and texts. On unit vectors a quarter of `feature_mse`.

    Returns:
        () from 0 to 2.
    Raises:
        ValueError: shapes differ.
    """
    _check(image, text, teacher_image, teacher_text)
    return 1 - ((image * teacher_image).sum(dim=-1) + (text * teacher_text).sum(dim=-1)).mean() / 2


def affinity(
    image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, scale: Tensor, teacher_scale: Tensor
) -> Tensor:  # fmt: skip
    """Hold the pictures and texts of a batch as alike as the teacher does: cross-entropy of its shares, both ways.

    Returns:
        () nats, mean of both directions; its least is the entropy of the teacher's shares, not 0.
    Raises:
        ValueError: shapes differ.
    Source: Wu et al. 2023 (TinyCLIP), arXiv:2309.12314, "affinity mimicking".
    """
    _check(image, text, teacher_image, teacher_text)
    logits, wanted = scale * image @ text.T, teacher_scale * teacher_image @ teacher_text.T
    return (_cross_entropy(logits, wanted) + _cross_entropy(logits.T, wanted.T)) / 2


def contrastive_relation(
    image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, scale: Tensor, teacher_scale: Tensor
) -> Tensor:  # fmt: skip
    """`affinity` less its least value: the Kullback-Leibler distance from the teacher's shares, with the same gradient.

    Returns:
        () nats, mean of both directions; 0 where the shares are equal.
    Raises:
        ValueError: shapes differ.
    Source: Yang et al. 2023 (CLIP-KD), arXiv:2307.12732, "CRD".
    """
    _check(image, text, teacher_image, teacher_text)
    least = affinity(teacher_image, teacher_text, teacher_image, teacher_text, teacher_scale, teacher_scale)
    return affinity(image, text, teacher_image, teacher_text, scale, teacher_scale) - least


def interactive_contrast(
    image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, scale: Tensor
) -> Tensor:
    """Find each picture's text among the teacher's texts, and each text's picture among the teacher's pictures.

    Returns:
        () nats, mean of both directions; ln B where nothing is told apart.
    Raises:
        ValueError: shapes differ.
    Source: Yang et al. 2023 (CLIP-KD), arXiv:2307.12732, "ICL".
    """
    _check(image, text, teacher_image, teacher_text)
    target = torch.arange(len(image), device=image.device)
    by_image = F.cross_entropy(scale * image @ teacher_text.T, target)
    return (by_image + F.cross_entropy(scale * text @ teacher_image.T, target)) / 2


def relational(image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor) -> Tensor:
    """Keep the teacher's distances within each kind: pictures to pictures, texts to texts. Asks nothing of their directions.

    Works where the widths differ, without a projection.

    Returns:
        () mean squared difference of the B (B - 1) cosines, mean of both kinds; 0 for any rotation of the teacher's embeddings.
    Raises:
        ValueError: other than as many rows.
    Source: Park et al. 2019 (RKD), arXiv:1904.05068, with cosines in place of scaled distances (Tung & Mori 2019, arXiv:1907.09682).
    """
    if len({len(rows) for rows in (image, text, teacher_image, teacher_text)}) != 1:
        raise ValueError(
            f"want as many rows, got {len(image)}, {len(text)}, {len(teacher_image)}, {len(teacher_text)}"
        )
    others = ~torch.eye(len(image), dtype=torch.bool, device=image.device)
    kinds = ((image, teacher_image), (text, teacher_text))
    parts = [F.mse_loss((own @ own.T)[others], (wanted @ wanted.T)[others]) for own, wanted in kinds]
    return (parts[0] + parts[1]) / 2


def hybrid_contrast(
    image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor, scale: Tensor, teacher_scale: Tensor
) -> Tensor:  # fmt: skip
    """A contrast whose targets are half the truth and half the teacher's shares, so that near misses are forgiven as the teacher would.

    Returns:
        () nats, mean of both directions: Kullback-Leibler distance from the targets; 0 where the student's shares are they.
    Raises:
        ValueError: shapes differ.
    Source: Yamaguchi et al. 2025 (CLIP-Refine), arXiv:2504.12717, "HyCD".
    """
    _check(image, text, teacher_image, teacher_text)
    logits, wanted = scale * image @ text.T, teacher_scale * teacher_image @ teacher_text.T
    truth = torch.eye(len(image), device=image.device, dtype=image.dtype)
    parts = []
    for own, other in ((logits, wanted), (logits.T, wanted.T)):
        target = TRUTH * truth + (1 - TRUTH) * other.softmax(dim=-1)
        parts.append(F.kl_div(own.log_softmax(dim=-1), target, reduction="batchmean"))
    return (parts[0] + parts[1]) / 2


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """(B, B) logits of both -> () mean over rows of the cross-entropy from the softmax of `wanted`."""
    return F.cross_entropy(logits, wanted.softmax(dim=-1))


def _check(*rows: Tensor) -> None:
    shapes = {tuple(one.shape) for one in rows}
    if len(shapes) != 1 or rows[0].ndim != 2:
        raise ValueError(f"want four of (B, D), got {', '.join(map(str, sorted(shapes)))}")
