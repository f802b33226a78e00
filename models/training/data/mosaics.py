"""Batches of mosaics: captioned pictures tiled 2x2, 3x3 and 4x4 into one, so that each is a region whose box and text are known.

Source: Wu et al. 2023 (CLIM), arXiv:2312.11376, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.errors import TrainingError
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.training.data.pairs import ShuffledPairs, group_of, stack
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.validation import region_recall
from edgeclip.runtime.images import Preprocessor

SIDES = (2, 3, 4)  # tiles a side
GROUP = sum(side * side for side in SIDES)  # 29 pictures: one mosaic of each side


@dataclass(frozen=True)
class MosaicBatch:
    """B pairs, of which 29 G are tiles of mosaics and S are whole pictures, in the order of the fields."""

    twos: Tensor  # (G, 3, H, W) mosaics of 2x2
    threes: Tensor  # (G, 3, H, W) of 3x3
    fours: Tensor  # (G, 3, H, W) of 4x4
    singles: Tensor  # (S, 3, H, W)
    input_ids: Tensor  # (B, L): of the tiles of `twos`, row by row, then of `threes`, `fours` and `singles`
    groups: Tensor  # (B,): pairs of one group say the same
    unreadable: tuple[str, ...] = ()

    def split(self, parts: int) -> list[MosaicBatch]:
        """Equal parts in order; G and S are multiples of `parts`."""
        pictures = self.twos, self.threes, self.fours, self.singles
        counts = [len(x) * tiles for x, tiles in zip(pictures, (4, 9, 16, 1), strict=True)]
        found = []
        for i in range(parts):
            twos, threes, fours, singles = (_share(x, i, parts) for x in pictures)
            ids, groups = (
                torch.cat([_share(section, i, parts) for section in torch.split(x, counts)])
                for x in (self.input_ids, self.groups)
            )
            found.append(MosaicBatch(twos, threes, fours, singles, ids, groups))
        return found


class Mosaics(ShuffledPairs):
    """Of every 29 pairs three mosaics are made; the rest of a batch, or of each of its `accumulate` parts, stays whole."""

    def __init__(self, recipe: Recipe, source: Source, shard: Shard) -> None:
        super().__init__(recipe, source, shard)
        part = self.shuffled.part // recipe.accumulate
        if part < GROUP:
            raise TrainingError(
                f"batch_size: expected {GROUP} pairs or more for each process and part, since a mosaic of each side takes so many; "
                f"got {part}."
            )
        groups, singles = (n * recipe.accumulate for n in divmod(part, GROUP))
        self._mosaics = groups
        sides = [side for side in SIDES for _ in range(groups * side * side)] + [1] * singles
        self._specs = [tile_spec(self._spec, side) for side in sides]
        self._tile = Preprocessor(tile_spec(self._spec, 2))

    def batch(self, step: int) -> MosaicBatch:  # type: ignore[override]
        """This process's part of the step's batch. Raises TrainingError: no readable pair could be found."""
        rows, unreadable = self.shuffled.draw(
            step, lambda place, index, rng: self._row(index, rng, self._specs[place])
        )
        views, captions, groups = zip(*rows, strict=True)
        tiles = [view[0] for view in views]
        ends = [self._mosaics * n for n in (0, 4, 13, 29)]  # of the tiles of each side
        twos, threes, fours = (
            mosaics(tiles[a:b], side, self._spec.size)
            for side, (a, b) in zip(SIDES, pairwise(ends), strict=True)
        )
        singles = stack(tiles[ends[-1] :]) if len(tiles) > ends[-1] else twos[:0]
        return MosaicBatch(
            twos, threes, fours, singles, self._ids(captions), torch.tensor(groups), unreadable
        )

    def validate(self, model: DualEncoder, device: torch.device) -> dict[str, float]:
        """Held-out pairs as tiles of 2x2: whether each region finds its caption among all of them. Beside it, the whole pictures."""
        scores = super().validate(model, device)
        regions = region_recall(model, self._tiled(), device)
        return {**scores, **regions, "score": regions["region_r1"]} if regions else scores

    def _tiled(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(pixels, boxes, ids, groups) of mosaics of held-out pairs; fewer than four that are left over are not shown."""
        for rows in self._held_out_rows(64, self._tile):
            rows = rows[: len(rows) // 4 * 4]
            if rows:
                views, captions = zip(*rows, strict=True)
                groups = torch.tensor([group_of(caption) for caption in captions]).view(-1, 4)
                pixels = mosaics(views, 2, self._spec.size)
                ids = self._ids(self._first_template(captions))
                yield pixels, tile_boxes(2).expand(len(pixels), -1, -1), ids, groups


def tile_spec(spec: Preprocessing, side: int) -> Preprocessing:
    """As pictures are prepared, for one tile of a mosaic of `side` x `side`: the least whole pixels that fill it."""
    if side == 1:
        return spec
    height, width = (-(-n // side) for n in spec.size)
    return replace(
        spec, size=(height, width), resize=round(spec.resize * min(height, width) / min(spec.size))
    )


def tile_boxes(side: int) -> Tensor:
    """(side * side, 4) float32 xyxy of a mosaic's tiles, row by row, in 0-1."""
    row, column = np.divmod(np.arange(side * side), side)
    return torch.from_numpy(np.stack([column, row, column + 1, row + 1], axis=1) / side).float()


def mosaics(tiles: Sequence[NDArray[np.float32]], side: int, size: tuple[int, int]) -> Tensor:
    """N * side * side tiles (3, h, w) -> (N, 3, H, W), row by row; a canvas of another size is resized, bicubic."""
    _, h, w = tiles[0].shape
    grid = np.stack(tiles).reshape(-1, side, side, 3, h, w)
    canvas = grid.transpose(0, 3, 1, 4, 2, 5).reshape(-1, 3, side * h, side * w)
    if canvas.shape[2:] != size:
        planes = [
            np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BICUBIC))
            for plane in canvas.reshape(-1, side * h, side * w)
        ]
        canvas = np.stack(planes).reshape(-1, 3, *size)
    return torch.from_numpy(np.ascontiguousarray(canvas))


def _share(x: Tensor, i: int, parts: int) -> Tensor:
    return x[i * len(x) // parts : (i + 1) * len(x) // parts]
