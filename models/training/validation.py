"""Retrieval among held-out pairs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.source import DualEncoder
from edgeclip.models.training.batch import PairBatch, to_device


@torch.no_grad()
def retrieval(model: DualEncoder, batches: Iterable[PairBatch], device: torch.device) -> dict[str, float]:
    """Score zero-shot retrieval, both ways.

    Returns:
        "image_to_text_r1", "text_to_image_r1" in 0-1, their mean as "score", and "pairs". {} without any pair.
    """
    images, texts, groups = [], [], []
    training = model.training
    model.eval()
    for batch in batches:
        batch = to_device(batch, device)
        images.append(F.normalize(model.encode_image(batch.pixels).float(), dim=-1))
        texts.append(F.normalize(model.encode_text(batch.input_ids).float(), dim=-1))
        groups.append(batch.groups)
    model.train(training)
    if not images:
        return {}
    image, text, group = torch.cat(images), torch.cat(texts), torch.cat(groups)
    there, back = recall_at_1(image, text, group), recall_at_1(text, image, group)
    return {
        "score": (there + back) / 2,
        "image_to_text_r1": there,
        "text_to_image_r1": back,
        "pairs": float(len(image)),
    }


def recall_at_1(queries: Tensor, items: Tensor, groups: Tensor) -> float:
    """Share of queries whose nearest item is of their own group.

    Args:
        queries: (N, D) unit vectors.
        items: (N, D) unit vectors; item i belongs to query i.
        groups: (N,) integers; an item of the query's group counts as found (equal captions are equally right).
    """
    # in parts: (N, N) at once would be 40 GB for 100,000 pairs
    hits = [groups[(part @ items.T).argmax(dim=1)] for part in torch.split(queries, 1024)]
    return float((torch.cat(hits) == groups).float().mean())
