"""A contrast between two views of the same pictures."""

from __future__ import annotations

from torch import Tensor

from edgeclip.models.training.objectives.info_nce import info_nce


def image_contrast(image: Tensor, image_b: Tensor, scale: Tensor) -> Tensor:
    """Find each picture's other view among the batch's other views, both ways.

    Args:
        image: (B, D) embeddings of one view, unit length.
        image_b: (B, D) embeddings of another view; row i shows what image i shows.
        scale: () factor on cosine similarity, after exp; shared with the image-text objective.
    Returns:
        () loss in nats; ln B when nothing is told apart.
    Raises:
        ValueError: the two are not both (B, D).
    Source: Chen et al. 2020 (SimCLR), arXiv:2002.05709, without the negatives of the same view.
    """
    return info_nce(image, image_b, scale)
