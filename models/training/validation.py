"""Retrieval among held-out pairs, and of the texts of held-out regions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.source import DualEncoder
from edgeclip.models.training.batch import PairBatch, to_device
from edgeclip.models.training.region_towers import region_embeddings


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


@torch.no_grad()
def region_recall(
    model: DualEncoder, regions: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]], device: torch.device
) -> dict[str, float]:
    """Score whether held-out regions find their texts among those of all of them.

    Args:
        regions: (pixels (N, 3, H, W), boxes (N, M, 4), ids of their texts (N * M, L), groups (N, M)): N and M may differ from one to
            the next.
    Returns:
        "region_r1" in 0-1, and "regions", how many. {} without any.
    """
    found, texts, groups = [], [], []
    training = model.training
    model.eval()
    for pixels, boxes, input_ids, group in regions:
        found.append(region_embeddings(model, pixels.to(device), boxes.to(device)).flatten(0, 1))
        texts.append(F.normalize(model.encode_text(input_ids.to(device)).float(), dim=-1))
        groups.append(group.flatten().to(device))
    model.train(training)
    if not found:
        return {}
    region, text, all_groups = torch.cat(found), torch.cat(texts), torch.cat(groups)
    return {"region_r1": recall_at_1(region, text, all_groups), "regions": float(len(region))}


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
