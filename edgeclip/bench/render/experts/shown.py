"""What a picture of experts shows: a few of the pictures with who took which patch, and the patches that each took most surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgeclip.errors import InputError
from edgeclip.runtime.experts import ExpertUse, Grid, Routing, Surest
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.model import Model

PICTURES, BLOCKS, PATCHES = (
    6,
    4,
    10,
)  # that are shown at most: pictures, blocks of each, patches of each expert
AROUND = 3  # patches a side of what is shown of a patch, itself in the middle where there is room
TILE = 60  # its side, pixels
GAP, GREY = (
    3,
    128,
)  # between patches, pixels and level: a middle grey stands off from any of them, on any page

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """A picture as the tower saw it."""

    name: str
    pixels: Pixels
    routing: Routing


@dataclass(frozen=True)
class Shown:
    """One tower's."""

    use: ExpertUse
    blocks: tuple[int, ...] = ()  # whose maps and patches are shown
    pictures: tuple[Seen, ...] = ()
    # (block, expert) -> (name of the picture, share, (TILE, TILE, 3)), the surest first
    patches: Mapping[tuple[int, int], tuple[tuple[str, float, Pixels], ...]] = field(default_factory=dict)


def collect(model: Model, paths: Sequence[Path], use: ExpertUse) -> Shown:
    """Look again at the few pictures that are to be shown.

    Args:
        paths: those that `use` was counted over, in that order.
        use: of the image tower, with patches kept.
    """
    spec = model.manifest.preprocessing
    blocks = spread(use.blocks, BLOCKS)
    if spec is None or use.grid is None:
        return Shown(use, blocks)
    preprocessor = Preprocessor(spec)
    pictures = []
    for path in spread(paths, PICTURES):
        try:
            pictures.append(Seen(path.name, preprocessor.uint8(path), model.routing_of(path)))
        except InputError:  # it was told when it was counted
            continue
    wanted = {key: kept[:PATCHES] for key, kept in use.surest.items() if key[0] in blocks}
    tiles: dict[tuple[tuple[int, int], int], tuple[str, float, Pixels]] = {}
    by_picture: dict[int, list[tuple[tuple[int, int], int, Surest]]] = {}
    for key, kept in wanted.items():
        for rank, one in enumerate(kept):
            by_picture.setdefault(one.picture, []).append((key, rank, one))
    for number, asked in by_picture.items():
        pixels = preprocessor.uint8(paths[number])
        for key, rank, one in asked:
            tiles[key, rank] = (paths[number].name, one.share, tile_of(pixels, use.grid, one.row, one.column))
    patches = {key: tuple(tiles[key, rank] for rank in range(len(kept))) for key, kept in wanted.items()}
    return Shown(use, blocks, tuple(pictures), patches)


def spread(items: Sequence[T], most: int) -> tuple[T, ...]:
    """At most so many of them, from the first to the last, evenly."""
    if len(items) <= most:
        return tuple(items)
    return tuple(items[round(i * (len(items) - 1) / max(most - 1, 1))] for i in range(most))


def tile_of(pixels: Pixels, grid: Grid, row: int, column: int) -> Pixels:
    """(TILE, TILE, 3): a patch of (H, W, 3) pixels in a frame, with its neighbours."""
    side = pixels.shape[0] // grid[0]
    around = min(AROUND, *grid)
    top, left = (
        min(max(at - around // 2, 0), count - around) for at, count in zip((row, column), grid, strict=True)
    )
    cut = pixels[top * side : (top + around) * side, left * side : (left + around) * side]
    image = Image.fromarray(np.ascontiguousarray(cut)).resize((TILE, TILE), Image.Resampling.BICUBIC)
    step = TILE / around
    x, y = round((column - left) * step), round((row - top) * step)
    draw = ImageDraw.Draw(image)
    end = round(step) - 1
    draw.rectangle((x - 1, y - 1, x + end + 1, y + end + 1), outline=(0, 0, 0))  # on light and dark ground
    draw.rectangle((x, y, x + end, y + end), outline=(255, 255, 255))
    return np.asarray(image)


def strip(tiles: Sequence[Pixels]) -> Image.Image:
    """Patches side by side."""
    gap = np.full((TILE, GAP, 3), GREY, np.uint8)
    parts = [part for tile in tiles for part in (gap, tile)][1:]
    return Image.fromarray(np.concatenate(parts, axis=1))
