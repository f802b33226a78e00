"""Drawn shapes with captions, `shapes:N`: data for a first run and for tests, without any file.

The caption is the key, so that held-out pairs show combinations that training never saw.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

from PIL import Image, ImageDraw

from edgeclip.errors import TrainingError

SIDE = 64  # pixels of the square pictures
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 50),
    "purple": (140, 60, 170),
    "orange": (245, 140, 40),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
}
# corners on the unit circle, in turns; () is the circle itself; a star's inner corners lie at 0.45 of its radius
SHAPES = {"circle": 0, "triangle": 3, "square": 4, "pentagon": 5, "star": 10}
SIZES = {"small": 0.17, "large": 0.38}  # radius as a share of the side


def matches(location: str) -> bool:
    """Whether this is `shapes:N`."""
    return location.startswith("shapes:")


class Shapes:
    """N pictures; picture i is the same on every machine."""

    def __init__(self, count: int) -> None:
        combinations = [
            (size, color, shape, ground)
            for size in SIZES
            for color in COLORS
            for shape in SHAPES
            for ground in COLORS
            if ground != color
        ]
        random.Random(0).shuffle(combinations)
        self._what = [combinations[i % len(combinations)] for i in range(count)]
        self.keys: Sequence[str] = ["a {} {} {} on {}".format(*what) for what in self._what]

    def read(self, index: int) -> tuple[Image.Image, list[str]]:
        """The drawing, the same each time, and its one caption."""
        size, color, shape, ground = self._what[index]
        rng = random.Random(index)
        image = Image.new("RGB", (SIDE, SIDE), _shade(COLORS[ground], rng))
        radius = SIDE * SIZES[size] * rng.uniform(0.9, 1.1)
        x, y = (rng.uniform(radius, SIDE - radius) for _ in "xy")
        draw(ImageDraw.Draw(image), shape, (x, y), radius, _shade(COLORS[color], rng), rng)
        return image, [self.keys[index]]


def draw(
    paint: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    fill: tuple[int, int, int],
    rng: random.Random,
) -> None:
    """One of SHAPES, turned a little: `centre` (x, y) and `radius` in pixels."""
    x, y = centre
    corners, turn = (
        SHAPES[shape],
        rng.uniform(-0.15, 0.15) + (math.pi / 4 if shape == "square" else -math.pi / 2),
    )
    if not corners:
        paint.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    reach = [radius * (0.45 if shape == "star" and i % 2 else 1) for i in range(corners)]
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    paint.polygon(
        [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(reach, angles, strict=True)], fill=fill
    )


def open_pairs(location: str) -> Shapes:
    """`shapes:N`. Raises TrainingError if N is no whole number above 0."""
    if not re.fullmatch(r"shapes:[1-9][0-9]*", location):
        raise TrainingError(
            f"data: expected shapes:N with a whole number N, e.g. shapes:2000, got {location!r}."
        )
    return Shapes(int(location.partition(":")[2]))


def _shade(color: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, value + rng.randint(-18, 18))) for value in color)
    return red, green, blue
