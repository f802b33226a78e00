"""Photographs of a wanted size, made from a folder of real ones: the same on every machine."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = Path(__file__).parents[1] / "../shared/data/coco64/images"


def find_photographs(folder: Path = PHOTOGRAPHS) -> list[Path]:
    """The folder's JPEGs in a stable order."""
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise SystemExit(f"{folder}: no .jpg in it. Pass --images with a folder of photographs.")
    return paths


def small(path: Path, longest: int = 500) -> bytes:
    """The photograph with its longer side at 500 pixels, JPEG of quality 90."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return _jpeg(image)


def twelve_megapixels(paths: Sequence[Path], seed: int) -> bytes:
    """4000 x 3000: four photographs side by side, enlarged, with fine detail as a sensor adds it; JPEG of quality 90.

    The detail matters: an enlarged picture alone compresses to a third of a camera's file, and decodes faster than one.
    """
    canvas = Image.new("RGB", (4000, 3000))
    for i in range(4):
        tile = (
            Image.open(paths[(seed + 7 * i) % len(paths)])
            .convert("RGB")
            .resize((2000, 1500), Image.Resampling.BICUBIC)
        )
        canvas.paste(tile, (2000 * (i % 2), 1500 * (i // 2)))
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.normal(0, 8, (1500, 2000)).astype(np.float32)).resize((4000, 3000))
    detail = np.asarray(coarse) + random.normal(0, 4, (3000, 4000)).astype(np.float32)
    return _jpeg(Image.fromarray(np.clip(np.asarray(canvas) + detail[:, :, None], 0, 255).astype(np.uint8)))


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()
