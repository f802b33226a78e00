"""Inputs for a run without any of the user's: pictures with the spectrum of photographs, sentences, everyday nouns."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

WIDTH, HEIGHT, COUNT = 640, 480, 16
CONTRAST = 24  # percent, of each octave: gives the bytes of photographs

NOUNS = (
    "apple", "bicycle", "boat", "bottle", "bus", "cake", "car", "cat", "chair", "clock",
    "dog", "elephant", "horse", "kite", "laptop", "person", "pizza", "sofa", "train", "umbrella",
)  # fmt: skip
# Up to 25 words: within the 32 tokens of the shortest text towers, since each text that is cut is logged.
SENTENCES = (
    "A red bus.",
    "Two cats asleep.",
    "Rain on a window.",
    "A bowl of green apples.",
    "Children run along the beach.",
    "An old man reads his newspaper.",
    "The last train leaves at midnight.",
    "A brown horse behind a wooden fence.",
    "Snow lies on the roofs of a small village.",
    "A cyclist waits at the lights with one foot on the kerb.",
    "Three boats are tied up at the pier, and a gull sits on the middle one.",
    "A kitchen table with a loaf of bread, a knife, some butter and two cups of tea.",
    "A dog shakes itself after a swim, and drops of water fly in all directions against the sun.",
    "On the shelf above the desk stand a clock, a row of books, a plant and a framed photograph.",
    "A market square early in the morning: traders unload vans, open umbrellas and stack crates of oranges.",
    "A woman in a yellow coat crosses a busy street in the rain while taxis and a tram wait for her to pass.",
)


def generated_pictures() -> list[bytes]:
    """Sixteen JPEGs of 640 x 480, the same ones everywhere: all of their arithmetic is in integers.

    Noise in colour of as much contrast in each octave, which is the spectrum of photographs (amplitude falls as one over the
    frequency), with flat shapes of sharp edges; quality 90. Beside the sixteen photographs of this size among 64 of COCO val2017 they
    have 1.02 times the bytes and take 0.94 times as long to decode (medians).
    """
    return [_picture(seed) for seed in range(COUNT)]


def _picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    light, red, blue = _noise(rng, 0), _noise(rng, 2) // 3, _noise(rng, 2) // 3
    colours = np.stack([light + red, light - (red + blue) // 2, light + blue], axis=-1) + _shapes(rng)
    file = io.BytesIO()
    Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _noise(rng: np.random.Generator, finest: int) -> NDArray[np.int32]:
    """(H, W) around 0: a grid of random greys for each octave, the coarsest of about 5 x 3, all scaled up and added."""
    found = np.zeros((HEIGHT, WIDTH), np.int32)
    for octave in range(finest, 8):
        size = (WIDTH >> octave, HEIGHT >> octave)
        grid = rng.integers(0, 256, size[::-1], dtype=np.uint8)
        found += np.asarray(Image.fromarray(grid).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int32)
        found -= 127
    return found * CONTRAST // 100


def _shapes(rng: np.random.Generator) -> NDArray[np.int32]:
    """(H, W, 3) around 118: ellipses and boxes, one before the other."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (118, 118, 118))
    draw = ImageDraw.Draw(image)
    for _ in range(24):
        left, top = (int(rng.integers(-60, end)) for end in (WIDTH, HEIGHT))
        width, height = rng.integers(20, 200, 2).tolist()
        colour = tuple((118 + rng.integers(-60, 61) + rng.integers(-20, 21, 3)).tolist())
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(
            (left, top, left + width, top + height), fill=colour
        )
    return np.asarray(image, np.int32)
