"""Batches of pictures with up to M boxes each, which texts name."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from edgeclip.errors import InputError
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.training.data.augment import placed, whole
from edgeclip.models.training.data.pairs import ShuffledPairs, group_of, stack
from edgeclip.models.training.data.region_tables import RegionTable, open_regions
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.recipe import Augmentation, Recipe
from edgeclip.models.training.validation import region_recall

SHOWN = 0.5  # share of a box's area that a view must show for its text to still name it
MOST = 64  # boxes of a held-out picture that are scored

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegionBatch:
    """B pairs of a picture and a text, and M places for boxes of each picture."""

    pixels: Tensor  # (B, 3, H, W) float32, normalised
    input_ids: Tensor  # (B, L) int64
    groups: Tensor  # (B,) int64: pairs of one group say the same
    boxes: Tensor  # (B, M, 4) float32 xyxy, 0-1 of the view's sides; the whole view where there is no box
    region_ids: Tensor  # (B, M, L) int64 of the boxes' texts
    named: Tensor  # (B, M) int64: 1 where there is a box, 0 for padding
    unreadable: tuple[str, ...] = ()

    def split(self, parts: int) -> list[RegionBatch]:
        """Equal parts in order; B is a multiple of `parts`."""
        names = ("pixels", "input_ids", "groups", "boxes", "region_ids", "named")
        return [
            RegionBatch(*columns)
            for columns in zip(*(getattr(self, name).chunk(parts) for name in names), strict=True)
        ]


Row = tuple[NDArray[np.float32], str, int, NDArray[np.float32], list[str]]


class RegionPairs(ShuffledPairs):
    """Pictures with named boxes, in shuffled epochs. A picture with more than M shows M of them, drawn anew each time."""

    def __init__(self, recipe: Recipe, source: Source, shard: Shard) -> None:
        self._table = open_regions(recipe.data, recipe.images)
        super().__init__(recipe, source, shard)
        self._most = recipe.regions

    def _open(self, recipe: Recipe) -> RegionTable:
        return self._table

    def batch(self, step: int) -> RegionBatch:  # type: ignore[override]
        """This process's part of the step's batch. Raises TrainingError: no readable pair could be found."""
        rows, unreadable = self.shuffled.draw(step, lambda place, index, rng: self._region_row(index, rng))
        views, captions, groups, boxes, texts = zip(*rows, strict=True)
        return RegionBatch(
            stack(views), self._ids(captions), torch.tensor(groups), *self._padded(boxes, texts), unreadable
        )

    def validate(self, model: DualEncoder, device: torch.device) -> dict[str, float]:
        """Held-out pictures: whether each box finds its text among those of all of them. Beside it, the whole pictures."""
        scores = super().validate(model, device)
        regions = region_recall(model, self._held_out_regions(), device)
        return {**scores, **regions, "score": regions["region_r1"]} if regions else scores

    def _region_row(self, index: int, rng: Generator) -> Row:
        """(view, caption, group, boxes on the view, their texts)."""
        picture, captions = self._pairs.read(index)
        caption = captions[int(rng.integers(len(captions)))]
        text, where = self._in_template(caption, rng), self._pairs.keys[index]
        if crops(self._augmentation):
            view, place = placed(picture, self._spec, self._augmentation, rng, where)
        else:
            view, place = whole(picture, self._prepare, self._augmentation, rng, where)
        boxes, texts = self._table.regions(index)
        boxes, kept = visible(place(boxes))
        drawn = rng.permutation(kept)[: self._most]
        return view, text, group_of(caption), boxes[drawn], [self._in_template(texts[i], rng) for i in drawn]

    def _padded(
        self, boxes: Sequence[NDArray[np.float32]], texts: Sequence[Sequence[str]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(boxes, ids, named) with M places for each picture."""
        places = np.tile(np.array([0, 0, 1, 1], np.float32), (len(boxes), self._most, 1))
        named = np.zeros((len(boxes), self._most), np.int64)
        for i, found in enumerate(boxes):
            places[i, : len(found)], named[i, : len(found)] = found, 1
        flat = [text for row in texts for text in [*row, *[""] * (self._most - len(row))]]
        ids = self._ids(flat).view(len(boxes), self._most, -1)
        return torch.from_numpy(places), ids, torch.from_numpy(named)

    def _held_out_regions(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(pixels, boxes, ids, groups) of each held-out picture, as the runtime lays it out."""
        rng, still = np.random.default_rng(0), Augmentation(crop_scale=(1, 1))
        for index in self.shuffled.held_out:
            boxes, texts = self._table.regions(int(index))
            try:
                picture, where = self._pairs.read(int(index))[0], self._pairs.keys[index]
                view, place = whole(picture, self._prepare, still, rng, where)
            except (InputError, OSError) as error:
                log.warning("left out of validation: %s", error)
                continue
            boxes, kept = visible(place(boxes))
            if len(kept := kept[:MOST]):
                said = [texts[i] for i in kept]
                groups = torch.tensor([[group_of(text) for text in said]])
                yield (
                    stack([view]),
                    torch.from_numpy(boxes[kept])[None],
                    self._ids(self._first_template(said)),
                    groups,
                )


def crops(how: Augmentation) -> bool:
    """Whether a random crop is asked for; without one a picture is laid out as the runtime does it."""
    return how.crop_scale != (1.0, 1.0)


def visible(boxes: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Boxes cut at the view's border, and which of them still show half of their area.

    Args:
        boxes: (R, 4) xyxy, 0-1 of the view's sides; may reach beyond.
    """
    cut = boxes.clip(0, 1)
    whole_area, area = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (boxes, cut))
    return cut, np.flatnonzero(area >= SHOWN * np.maximum(whole_area, 1e-12))
