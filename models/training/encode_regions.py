"""What a model that embeds regions says of a batch: of tiles of mosaics (CLIM), or of boxes that texts name (CLOC)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.source import DualEncoder
from edgeclip.models.training.data.mosaics import SIDES, MosaicBatch, tile_boxes
from edgeclip.models.training.data.region_batches import RegionBatch
from edgeclip.models.training.region_towers import region_embeddings, region_towers


def encode_mosaics(model: DualEncoder, batch: MosaicBatch) -> dict[str, Tensor]:
    """`image` (B, D), of a tile its region in the mosaic and of a single the picture's embedding, `text` (B, D), `groups` (B,).

    So the pairs of a batch stay pairs, and every objective of pairs is one of regions; CLIM's is InfoNCE.
    """
    images = []
    for side, pixels in zip(SIDES, (batch.twos, batch.threes, batch.fours), strict=True):
        if len(pixels):
            boxes = tile_boxes(side).to(pixels.device).expand(len(pixels), -1, -1)
            images.append(region_embeddings(model, pixels, boxes).flatten(0, 1))
    if len(batch.singles):
        images.append(_unit(model.encode_image(batch.singles)))
    return {
        "image": torch.cat(images),
        "text": _unit(model.encode_text(batch.input_ids)),
        "groups": batch.groups,
    }


def encode_regions(model: DualEncoder, batch: RegionBatch) -> dict[str, Tensor]:
    """`image`, `text` (B, D) and `groups` (B,) of the pictures; `regions`, `region_texts` (B, M, D), `boxes` (B, M, 4) and `named` (B, M)
    of their boxes; of a model that answers texts with boxes, `grounded` (B, M, 4)."""
    shape = batch.named.shape
    tokens_of, regions = region_towers(model)
    tokens = tokens_of(batch.pixels)
    texts = _unit(model.encode_text(batch.region_ids.flatten(0, 1))).view(*shape, -1)
    image_of = getattr(
        model, "image_of", None
    )  # the prompter's tokens are those that the picture's embedding is pooled from
    features = {
        "image": _unit(model.encode_image(batch.pixels) if image_of is None else image_of(tokens)),
        "text": _unit(model.encode_text(batch.input_ids)),
        "groups": batch.groups,
        "regions": _unit(regions(tokens, batch.boxes)),
        "region_texts": texts,
        "named": batch.named,
        "boxes": batch.boxes,
    }
    grounding = getattr(model, "grounding", None)
    return features if grounding is None else {**features, "grounded": grounding(tokens, texts)[1].float()}


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
