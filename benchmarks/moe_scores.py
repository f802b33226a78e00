"""What `moe_training` asks of a model: how well it names pictures, what it stores and activates, and whom its routers choose.

P pictures, N names, D width of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.expert_use import expert_use, towers_with_experts
from edgeclip.models.feed_forward import moe_layers
from edgeclip.models.source import Source
from edgeclip.models.training.data import open_pairs
from edgeclip.models.training.data.shuffled import split_by_hash
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.text import TextEncoder

AT_ONCE = 128  # pictures or names encoded together


@dataclass(frozen=True)
class Pictures:
    """Pictures of one kind and what each shows."""

    pixels: NDArray[np.float32]  # (P, 3, H, W)
    names: list[str]  # P


def pictures(source: Source, listing: Path, held_out: float = 1.0) -> Pictures:
    """The pictures of a .jsonl, laid out as the runtime does; of `held_out` below 1 those that training holds out."""
    assert source.preprocessing is not None
    pairs, prepare = open_pairs(str(listing)), Preprocessor(source.preprocessing)
    rows = range(len(pairs.keys)) if held_out == 1 else split_by_hash(pairs.keys, held_out)[1].tolist()
    pixels = np.empty((len(rows), 3, *source.preprocessing.size), np.float32)
    names = []
    for place, row in enumerate(rows):
        picture, captions = pairs.read(row)
        prepare.into(picture, pixels[place], where=pairs.keys[row])
        names.append(captions[0])
    return Pictures(pixels, names)


def answers(folder: Path) -> list[str]:
    """The N names to choose from, of the folder that pairs.py wrote."""
    found: list[str] = json.loads((folder / "names.json").read_text())
    return found


def ids(source: Source, texts: Sequence[str]) -> Tensor:
    """(N, L) int64."""
    assert source.text is not None
    encoder = TextEncoder(Tokenizer.from_str(source.tokenizer_json.decode()), source.text)
    return torch.from_numpy(encoder.encode(list(texts)).input_ids).long()


@torch.no_grad()
def right(source: Source, shown: Pictures, names: Sequence[str]) -> NDArray[np.bool_]:
    """(P,) whether the nearest of all bare names is the picture's own."""
    model = source.model.eval()
    texts = torch.cat([model.encode_text(part) for part in torch.split(ids(source, names), AT_ONCE)])
    parts = torch.split(torch.from_numpy(shown.pixels), AT_ONCE)
    images = torch.cat([model.encode_image(part) for part in parts])
    best = (F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T).argmax(dim=1).tolist()
    return np.array([names[i] == name for i, name in zip(best, shown.names, strict=True)])


def parameters(source: Source) -> tuple[int, int]:
    """How many are stored, and how many one token's way through the towers takes: of a mixture, its router and `top_k` experts."""
    stored = sum(p.numel() for p in source.model.parameters())
    idle = 0
    for layer in moe_layers(source.model).values():
        one = sum(p.numel() for p in layer.experts[0].parameters())
        idle += (len(layer.experts) - layer.top_k) * one
    return stored, stored - idle


def use(source: Source, shown: Pictures, names: Sequence[str]) -> dict[str, list[float]]:
    """Mixture -> share of tokens' choices that fell on each expert, adding up to 1, on pictures and names; {} for a dense model."""
    inputs = {"image": torch.from_numpy(shown.pixels), "text": ids(source, names)}
    towers = towers_with_experts(source.model)
    seen = expert_use(source.model, {tower: inputs[tower] for tower in towers})
    return {name: [round(x, 4) for x in one.use.tolist()] for name, one in seen.items()}
