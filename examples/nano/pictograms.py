"""Batches for nano: the same name in two drawings, clip art beside it, and hundreds of names as candidates.

Batch i depends only on the seed and on i, so a resumed run sees what an uninterrupted one would have seen.
P pictures, S their side, L text positions.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.source import DualEncoder

# What a name is wrapped in; the bare name is drawn most often.
TEMPLATES = (
    *("{}",) * 4,
    "a {}",
    "the {}",
    "an icon of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "{} emoji",
    "clip art of a {}",
    "a photo of a {}",
    "{}s",
)
CONTEXT_LENGTH = 32
Draw = Callable[[tuple[int, ...]], Tensor]  # a shape, pictures first -> numbers from 0 to 1


@dataclass(frozen=True)
class Batch:
    """One step's material: C candidate names, K texts that several pictures may carry."""

    pixels: Tensor  # (P, 3, S, S) float32, normalised with mean 0.5 and std 0.5
    names: Tensor  # (C, L) ids of the batch's names, of others that it does not show, then of its clip art's
    target: Tensor  # (P,) the row of `names` that each picture shows
    tags: Tensor  # (K, L) ids of one more text for every emoji name of the batch
    tag_matches: Tensor  # (P, K) bool: the picture carries that text among its name and tags
    pair: int  # the first `pair` pictures show the same names as the second `pair`, in another drawing
    rows: Tensor  # (P,) where each picture is stored
    views: Tensor | None  # (P,) number of each picture's view; None where every step makes new ones
    texts: tuple[list[str], list[str]]  # what `names` and `tags` say


class Pictograms:
    """The stored pictures and their texts, ready to be drawn from.

    Args:
        folder: what prepare.py wrote.
        sides: (share of the run, S): early steps see smaller pictures, which cost less.
        names: emoji names in a batch, each drawn twice.
        others: further names among the candidates.
        views: pictures are seen in so many fixed views each, so that a teacher's word on them can be stored; 0: always in a new one.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        steps: int,
        sides: tuple[tuple[float, int], ...] = ((0.75, 48), (1.0, 64)),
        names: int = 96,
        others: int = 800,
        clip_art: int = 56,
        views: int = 0,
        seed: int = 0,
    ) -> None:
        items = json.loads((folder / "training.json").read_text())
        self.pictures = np.load(folder / "training.npy", mmap_mode="r")
        self.tokenizer = tokenizer
        self.names_per_batch, self.others, self.clip_art_per_batch, self.seed = names, others, clip_art, seed
        self.steps, self.sides, self.views = steps, sides, views
        self.fingerprint = f"{len(items)} pictures"
        self.by_name: dict[str, list[int]] = {}
        self.texts: dict[str, set[str]] = {}
        self.clip_art: list[tuple[int, str, list[str]]] = []
        self.held_out: list[tuple[int, str]] = []
        all_names = set()
        for i, item in enumerate(items):
            name, tags = item["name"], item["tags"]
            if item["style"] == "clip-art":
                self.clip_art.append((i, name, tags))
                continue
            all_names.add(name)
            if item["split"] == "train":
                self.by_name.setdefault(name, []).append(i)
                self.texts.setdefault(name, {name}).update(tags)
            elif item["split"] == "validation":
                self.held_out.append((i, name))
        self.names = sorted(self.by_name)
        self.all_names = sorted(all_names)

    def ids(self, texts: list[str]) -> Tensor:
        """(N, L) int64, padded to the longest."""
        rows = [torch.tensor(self.tokenizer.encode(text).ids[:CONTEXT_LENGTH]) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        rng = random.Random(self.seed * 1_000_003 + step)
        candidates = rng.sample(self.names, min(self.names_per_batch + self.others, len(self.names)))
        drawn = candidates[: self.names_per_batch]
        pairs = [rng.sample(self.by_name[name] * 2, 2) for name in drawn]  # one drawing may meet itself
        art = rng.sample(self.clip_art, self.clip_art_per_batch)
        candidates += sorted({name for _, name, _ in art} - set(candidates))
        place = {name: row for row, name in enumerate(candidates)}
        rows = [first for first, _ in pairs] + [second for _, second in pairs] + [i for i, _, _ in art]
        target = [place[name] for name in drawn] * 2 + [place[name] for _, name, _ in art]
        names = [rng.choice(TEMPLATES).format(name) for name in candidates]
        tags = [rng.choice(sorted(self.texts[name])) for name in drawn]
        shown = [self.texts[name] for name in drawn] * 2
        shown += [{name, *name.split(), *folders} for _, name, folders in art]
        matches = torch.tensor([[tag in words for tag in tags] for words in shown])
        tags = [rng.choice(TEMPLATES).format(tag) for tag in tags]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        views = torch.randint(self.views, (len(rows),), generator=generator) if self.views else None
        draw = of_generator(generator) if views is None else of_views(rows, views.tolist())
        pictures = torch.from_numpy(np.stack([self.pictures[row] for row in rows]))
        side = next(side for share, side in self.sides if step < share * self.steps)
        return Batch(
            augment(pictures, side, draw),
            self.ids(names),
            torch.tensor(target),
            self.ids(tags),
            matches,
            len(drawn),
            torch.tensor(rows),
            views,
            (names, tags),
        )

    @torch.no_grad()
    def validate(self, model: DualEncoder, device: torch.device) -> dict[str, float]:
        """Top-1 and top-5 of the held-out Noto pictures among all emoji names, the untrained ones included."""
        model.eval()
        pictures = np.stack([self.pictures[i] for i, _ in self.held_out])
        pixels = on_white(torch.from_numpy(pictures))
        side = self.sides[-1][1]  # that it ends with
        if side != pixels.shape[-1]:
            pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)
        image = torch.cat([model.encode_image(part.to(device)) for part in pixels.split(256)])
        text = model.encode_text(self.ids(self.all_names).to(device))
        cosines = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        best = cosines.topk(5).indices.cpu()
        hits = best == torch.tensor([[self.all_names.index(name)] for _, name in self.held_out])
        top1 = float(hits[:, 0].float().mean())
        return {"score": top1, "top1": top1, "top5": float(hits.any(1).float().mean())}


def on_white(pictures: Tensor) -> Tensor:
    """(P, S, S, 4) uint8 RGBA -> (P, 3, S, S) normalised RGB on white, as the bundle's preprocessing gives it."""
    rgba = pictures.permute(0, 3, 1, 2).float() / 255
    return ((rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]) - 0.5) / 0.5


def of_generator(generator: torch.Generator) -> Draw:
    """Numbers that have never been drawn before."""
    return lambda shape: torch.rand(shape, generator=generator)


def of_views(rows: Sequence[int], views: Sequence[int]) -> Draw:
    """Numbers that depend on the picture's row and its view's number alone, so that a view can be made again at any side."""
    table = torch.from_numpy(
        np.stack([np.random.Philox(key=[row, view]).random_raw(64) >> 40 for row, view in zip(rows, views, strict=True)])
        .astype(np.float32) / 2**24
    )  # fmt: skip
    used = 0

    def draw(shape: tuple[int, ...]) -> Tensor:
        nonlocal used
        start, used = used, used + math.prod(shape[1:])
        return table[:, start:used].reshape(shape)

    return draw


def augment(pictures: Tensor, side: int, draw: Draw) -> Tensor:
    """(P, S, S, 4) uint8 RGBA -> (P, 3, side, side) normalised RGB: moved, recoloured, on a random background."""
    count = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return draw((count, *shape)) * (high - low) + low

    def sometimes(share: float) -> Tensor:
        return (draw((count, 1, 1, 1)) < share).float()

    rgba = pictures.permute(0, 3, 1, 2).float() / 255
    alpha = rgba[:, 3:]
    rgba = torch.cat([rgba[:, :3] * alpha, alpha], 1)  # premultiplied: transparent pixels carry no colour
    angle, scale = uniform(-0.25, 0.25) * (uniform(0, 1) < 0.6), uniform(0.85, 1.3)
    stretch, shear = torch.exp(uniform(-0.12, 0.12)), uniform(-0.12, 0.12)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    first = torch.stack([cos * stretch, -sin + shear, uniform(-0.12, 0.12)], 1)
    second = torch.stack([sin, cos / stretch, uniform(-0.12, 0.12)], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), [count, 4, side, side], align_corners=False)
    rgba = F.grid_sample(rgba, grid, align_corners=False)
    alpha = rgba[:, 3:]
    colour = rgba[:, :3] / alpha.clamp(min=1e-3)
    # Colour: saturation, rarely grey, a small shift between channels, contrast, brightness, flattened shading.
    grey = colour.mean(1, keepdim=True)
    colour = grey + (colour - grey) * uniform(0.5, 1.5, 1, 1, 1) * (1 - sometimes(0.05))
    mix = torch.eye(3) + uniform(-0.12, 0.12, 3, 3)
    colour = torch.einsum("pij,pjhw->pihw", mix / mix.sum(2, keepdim=True), colour)
    contrast, brightness = uniform(0.75, 1.3, 1, 1, 1), uniform(-0.15, 0.15, 1, 1, 1)
    colour = ((colour - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)
    levels = uniform(2.5, 7, 1, 1, 1)
    colour = torch.lerp(colour, torch.round(colour * levels) / levels, sometimes(0.25))
    # Background: white, black, plain or a gradient.
    white = sometimes(0.5)
    ramp = torch.linspace(0, 1, side).view(1, 1, 1, -1)
    plain = uniform(0, 1, 3, 1, 1) + uniform(-0.5, 0.5, 3, 1, 1) * sometimes(0.4) * ramp
    background = (white + (1 - white) * plain * (1 - sometimes(0.12))).clamp(0, 1).expand(-1, -1, side, side)
    picture = colour * alpha + background * (1 - alpha)
    blurred = F.avg_pool2d(picture, 3, 1, 1, count_include_pad=False)
    picture = torch.lerp(picture, blurred, uniform(-0.6, 0.8, 1, 1, 1) * sometimes(0.5))  # below 0 sharpens
    return ((picture - 0.5) / 0.5).clamp(-1.2, 1.2)
