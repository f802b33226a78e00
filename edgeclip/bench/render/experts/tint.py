"""A picture whose patches bear the colour and the number of the expert that took them.

Colours: from the palettes of Okabe and Ito ("Color Universal Design", 2008) and of Paul Tol, those eight that, as tints over grey, stay the
farthest apart with any colour vision: 28 in CIE Lab between the first four, 12 between all. From the ninth expert on they come again, and
the number tells.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#332288", "#f0e442", "#cc3311", "#66ccee", "#cc79a7", "#882255", "#0077bb", "#ee6677")
SIDE, SMALLEST = 240, 16  # of a tinted picture and of a patch in it, pixels: large enough for a number
NUMBER = 20  # of its letters, pixels at most
STRENGTH = 0.55  # of the colour over the grey picture

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB


def colour(expert: int) -> str:
    """As CSS has it."""
    return COLOURS[expert % len(COLOURS)]


def rgb(css: str) -> tuple[int, int, int]:
    """(red, green, blue), 0-255, of "#rrggbb"."""
    return int(css[1:3], 16), int(css[3:5], 16), int(css[5:7], 16)


def ink_on(css: str) -> str:
    """Black or white, whichever is read better on a colour."""
    red, green, blue = rgb(css)
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


def plain(pixels: Pixels, grid: tuple[int, int]) -> Image.Image:
    """The picture as large as its tinted ones, without what lies beyond the patches."""
    rows, columns = grid
    side = pixels.shape[0] // rows
    cell = max(SMALLEST, SIDE // max(grid))
    cut = np.ascontiguousarray(pixels[: rows * side, : columns * side])
    return Image.fromarray(cut).resize((columns * cell, rows * cell), Image.Resampling.BICUBIC)


def tinted(pixels: Pixels, experts: NDArray[np.int64]) -> Image.Image:
    """The picture in grey, each patch in the colour of its expert, lines where experts change.

    Args:
        pixels: (H, W, 3) as the tower saw it.
        experts: (rows, columns), one for each patch.
    """
    grid = experts.shape
    image = plain(pixels, (grid[0], grid[1]))
    cell = image.width // grid[1]
    palette = np.array([rgb(colour(i)) for i in range(int(experts.max()) + 1)], np.float32)
    wide = experts.repeat(cell, axis=0).repeat(cell, axis=1)
    grey = np.asarray(image.convert("L"), np.float32)[:, :, None]
    found = (1 - STRENGTH) * grey + STRENGTH * palette[wide]
    numbers = np.zeros(wide.shape, np.float32)
    for expert in np.unique(experts):
        mark = np.tile(_number(int(expert), cell), grid)
        numbers = np.where(wide == expert, mark, numbers)
    inks = np.array([rgb(ink_on(colour(i))) for i in range(len(palette))], np.float32)[wide]
    found += 0.8 * numbers[:, :, None] * (inks - found)
    found[1:][wide[1:] != wide[:-1]] = 255
    found[:, 1:][wide[:, 1:] != wide[:, :-1]] = 255
    return Image.fromarray(np.rint(found).astype(np.uint8))


@cache
def _number(expert: int, side: int) -> NDArray[np.float32]:
    """(side, side) 0-1: the expert's number in the middle of a patch."""
    image = Image.new("L", (side, side))
    font = ImageFont.load_default(size=min(round(side * 0.62), NUMBER))
    ImageDraw.Draw(image).text((side / 2, side / 2), str(expert), fill=255, font=font, anchor="mm")
    return np.asarray(np.asarray(image, np.float32) / 255, np.float32)
