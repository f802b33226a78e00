"""Compose the scenes in examples/scenes from the pictures in examples/pictures, none of which nano was trained on.

python examples/nano/demo_scenes.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

EXAMPLES = Path(__file__).parents[1]
SIZE = (512, 400)  # width, height
# scene -> (picture, left, top, longer side), in pixels
LAYOUTS = {
    "park": (
        ("train", 20, 210, 150),
        ("poodle", 200, 250, 110),
        ("sparkler", 390, 210, 100),
        ("waning-gibbous-moon", 400, 20, 84),
        ("socks", 330, 300, 76),
        ("person-cartwheeling", 40, 30, 120),
        ("flag-algeria", 210, 60, 130),
        ("poodle", 452, 344, 48),
    ),
    "table": (
        ("apple", 30, 40, 100),
        ("bananas", 170, 30, 120),
        ("strawberry", 340, 40, 84),
        ("hot-dog", 60, 200, 140),
        ("guitar", 220, 190, 190),
        ("apple", 432, 250, 56),
        ("violin", 200, 330, 130),
        ("strawberry", 440, 336, 44),
    ),
}


def backdrop(name: str) -> Image.Image:
    """Sky over grass, or boards of wood."""
    width, height = SIZE
    ramp = np.linspace(0, 1, height)[:, None, None]
    if name == "park":
        sky, grass = np.array([150, 200, 245]), np.array([120, 185, 95])
        rows = np.where(ramp < 0.55, sky + 60 * ramp, grass - 40 * (ramp - 0.55))
        return Image.fromarray(np.broadcast_to(rows, (height, width, 3)).clip(0, 255).astype(np.uint8))
    picture = Image.new("RGB", SIZE, (214, 180, 140))
    draw = ImageDraw.Draw(picture)
    for y in range(0, height, 50):
        draw.rectangle((0, y, width, y + 47), fill=(205 + y % 3 * 8, 168 + y % 4 * 5, 125))
    return picture.filter(ImageFilter.GaussianBlur(1))


def compose(name: str) -> Image.Image:
    """One scene."""
    scene = backdrop(name).convert("RGBA")
    for picture, left, top, longest in LAYOUTS[name]:
        drawing = Image.open(EXAMPLES / "pictures" / f"{picture}.png").convert("RGBA")
        drawing = drawing.crop(drawing.getchannel("A").getbbox())
        scale = longest / max(drawing.size)
        size = (round(drawing.width * scale), round(drawing.height * scale))
        scene.alpha_composite(drawing.resize(size, Image.Resampling.LANCZOS), (left, top))
    return scene.convert("RGB")


if __name__ == "__main__":
    (EXAMPLES / "scenes").mkdir(exist_ok=True)
    for name in LAYOUTS:
        compose(name).quantize(200, dither=Image.Dither.FLOYDSTEINBERG).save(
            EXAMPLES / "scenes" / f"{name}.png", optimize=True
        )
