"""Batches for nano: the same name in two drawing styles, clip art beside it, and every known name as a candidate.

Batch i depends only on the seed and on i, so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

TEMPLATES = ("{}", "{}", "{}", "a {}", "the {}", "an icon of a {}", "a picture of a {}", "a drawing of a {}", "{} emoji", "clip art of a {}", "a photo of a {}")


@dataclass(frozen=True)
class Batch:
    """One step's material. P pictures, C candidate texts, K of them drawn from the batch."""

    pixels: Tensor  # (P, 3, S, S) float32, normalised with mean 0.5 and std 0.5
    names: Tensor  # (C, L) ids of all known emoji names, then of the batch's clip-art names
    target: Tensor  # (P,) the row of `names` that each picture shows
    tags: Tensor  # (K, L) ids of one more text for every emoji name of the batch
    tag_matches: Tensor  # (P, K) bool: the picture carries that text among its name and tags
    pair: int  # the first `pair` pictures show the same names as the second `pair`, in another style


class Pictograms:
    """The stored pictures and their texts, ready to be drawn from."""

    def __init__(self, folder: Path, tokenizer: Path, *, leave_out: tuple[str, ...] = (), names: int = 96, clip_art: int = 64, seed: int = 0) -> None:
        items = json.loads((folder / "training.json").read_text())
        self.pictures = np.load(folder / "training.npy", mmap_mode="r")
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.tokenizer.enable_padding(pad_id=0)
        self.tokenizer.enable_truncation(32)
        self.names_per_batch, self.clip_art_per_batch, self.seed = names, clip_art, seed
        train = [(i, item) for i, item in enumerate(items) if item["split"] == "train" and item["style"] not in leave_out]
        self.by_name: dict[str, list[int]] = {}
        self.texts: dict[str, set[str]] = {}
        for i, item in train:
            if item["style"] != "clip-art":
                self.by_name.setdefault(item["name"], []).append(i)
                self.texts[item["name"]] = {item["name"], *item["tags"]}
        self.names = sorted(self.by_name)
        self.index = {name: row for row, name in enumerate(self.names)}
        self.paired = [name for name in self.names if len(self.by_name[name]) > 1]
        self.clip_art = [(i, item["name"], item["tags"]) for i, item in train if item["style"] == "clip-art"]

    def ids(self, texts: list[str]) -> Tensor:
        return torch.tensor([encoding.ids for encoding in self.tokenizer.encode_batch(texts)])

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        rng = random.Random(self.seed * 1_000_003 + step)
        drawn = rng.sample(self.paired, self.names_per_batch)
        pairs = [rng.sample(self.by_name[name], 2) for name in drawn]
        art = rng.sample(self.clip_art, self.clip_art_per_batch)
        art_names = sorted({name for _, name, _ in art})
        rows = [first for first, _ in pairs] + [second for _, second in pairs] + [i for i, _, _ in art]
        target = [self.index[name] for name in drawn] * 2 + [len(self.names) + art_names.index(name) for _, name, _ in art]
        wrapped = [rng.choice(TEMPLATES).format(name) for name in self.names + art_names]
        tags = [rng.choice(sorted(self.texts[name])) for name in drawn]
        shown = [self.texts[name] for name in drawn] * 2 + [{name, *name.split(), *folders} for _, name, folders in art]
        matches = torch.tensor([[tag in words for tag in tags] for words in shown])
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        pictures = torch.from_numpy(np.stack([self.pictures[row] for row in rows]))
        tag_ids = self.ids([rng.choice(TEMPLATES).format(tag) for tag in tags])
        return Batch(augment(pictures, generator), self.ids(wrapped), torch.tensor(target), tag_ids, matches, len(drawn))


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """(P, S, S, 4) uint8 RGBA -> (P, 3, S, S) normalised RGB: moved, recoloured, on a random background."""
    count = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    def sometimes(share: float) -> Tensor:
        return (torch.rand(count, 1, 1, 1, generator=generator) < share).float()

    rgba = pictures.permute(0, 3, 1, 2).float() / 255
    alpha = rgba[:, 3:]
    rgba = torch.cat([rgba[:, :3] * alpha, alpha], 1)  # premultiplied: transparent pixels carry no colour
    angle, scale = uniform(-0.3, 0.3) * (uniform(0, 1) < 0.7), uniform(0.85, 1.35)
    stretch, shear = torch.exp(uniform(-0.12, 0.12)), uniform(-0.12, 0.12)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack(
        [torch.stack([cos * stretch, -sin + shear, uniform(-0.15, 0.15)], 1), torch.stack([sin, cos / stretch, uniform(-0.15, 0.15)], 1)], 1
    )
    rgba = F.grid_sample(rgba, F.affine_grid(matrix, list(rgba.shape), align_corners=False), align_corners=False)
    alpha = rgba[:, 3:]
    colour = rgba[:, :3] / alpha.clamp(min=1e-3)
    # Colour: saturation, contrast, brightness, a small hue shift between channels, posterised shading, rarely grey.
    grey = colour.mean(1, keepdim=True)
    colour = grey + (colour - grey) * uniform(0.5, 1.5, 1, 1, 1) * (1 - sometimes(0.06))
    mix = torch.eye(3) + uniform(-0.12, 0.12, 3, 3)
    colour = torch.einsum("pij,pjhw->pihw", mix / mix.sum(2, keepdim=True), colour)
    colour = ((colour - 0.5) * uniform(0.75, 1.3, 1, 1, 1) + 0.5 + uniform(-0.15, 0.15, 1, 1, 1)).clamp(0, 1)
    levels = uniform(2.5, 7, 1, 1, 1)
    flat = torch.round(colour * levels) / levels
    colour = torch.lerp(colour, flat, sometimes(0.25))
    # Background: white, black, plain or a gradient.
    white = sometimes(0.45)
    ramp = torch.linspace(0, 1, rgba.shape[-1]).view(1, 1, 1, -1)
    plain = uniform(0, 1, 3, 1, 1) + uniform(-0.5, 0.5, 3, 1, 1) * sometimes(0.4) * ramp
    background = (white + (1 - white) * plain * (1 - sometimes(0.12))).clamp(0, 1).expand(-1, -1, *rgba.shape[2:])
    picture = colour * alpha + background * (1 - alpha)
    blurred = F.avg_pool2d(picture, 3, 1, 1, count_include_pad=False)
    picture = torch.lerp(picture, blurred, uniform(-0.6, 0.8, 1, 1, 1) * sometimes(0.5))  # below 0 sharpens
    return ((picture - 0.5) / 0.5).clamp(-1.2, 1.2)
