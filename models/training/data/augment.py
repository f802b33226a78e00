"""One training picture: a random crop of it, resized, recoloured and normalised; boxes go along. Pillow and numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.models.training.recipe import Augmentation
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.images.decode import Picture, decode
from edgeclip.runtime.images.geometry import to_input
from edgeclip.runtime.images.resize import Box, reduce_first, resize_crop

_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "gaussian": Image.Resampling.BILINEAR,  # antialiased too: a random crop is no place for exact agreement
}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# (R, 4) boxes in pixels of the picture -> (R, 4) float32 on the view made of it, 0-1 of its sides; they may reach beyond
Placing = Callable[[NDArray[np.float32]], NDArray[np.float32]]
_KEEP = 2  # decode a JPEG no smaller than twice what the crop needs


def augmented(
    picture: Picture, spec: Preprocessing, how: Augmentation, rng: Generator, where: str
) -> NDArray[np.float32]:
    """One random view of a picture.

    Args:
        spec: gives size, filter, mean and std; its crop or padding is replaced by the random crop.
        rng: decides everything; the same state gives the same view.
        where: names the picture in messages.
    Returns:
        (3, H, W) float32, normalised.
    Raises:
        InputError: the picture cannot be decoded.
    """
    return placed(picture, spec, how, rng, where)[0]


def placed(
    picture: Picture, spec: Preprocessing, how: Augmentation, rng: Generator, where: str
) -> tuple[NDArray[np.float32], Placing]:
    """As `augmented`, with the way of boxes."""
    height, width = spec.size
    share = rng.uniform(*how.crop_scale)
    shape = math.exp(rng.uniform(math.log(how.crop_ratio[0]), math.log(how.crop_ratio[1])))
    across, down = rng.random(2)

    def crop(w: int, h: int) -> Box:
        cut_w = min(w, math.sqrt(share * w * h * shape))
        cut_h = min(h, share * w * h / cut_w)
        left, top = across * (w - cut_w), down * (h - cut_h)
        return left, top, left + cut_w, top + cut_h

    def needed(w: int, h: int) -> tuple[int, int]:
        left, top, right, bottom = crop(w, h)
        return math.ceil(_KEEP * width * w / (right - left)), math.ceil(_KEEP * height * h / (bottom - top))

    found = decode(picture, at_least=needed, background=spec.background, where=where)
    x0, y0, x1, y1 = found.box
    x, y = (x1 - x0) / found.size[0], (y1 - y0) / found.size[1]
    left, top, right, bottom = crop(*found.size)
    box = x0 + left * x, y0 + top * y, min(x0 + right * x, x1), min(y0 + bottom * y, y1)
    image, box = reduce_first(found.image, (width, height), box, 3.0)
    resized = resize_crop(image, (width, height), box, _RESAMPLE[spec.resample])
    pixels, turn = _finished(np.asarray(resized), spec, how, rng)
    origin = np.array([left, top] * 2, np.float32)
    size = np.array([right - left, bottom - top] * 2, np.float32)
    return pixels, lambda boxes: turn((boxes - origin) / size)


def whole(
    picture: Picture, prepare: Preprocessor, how: Augmentation, rng: Generator, where: str
) -> tuple[NDArray[np.float32], Placing]:
    """As `placed`, of the whole picture as the runtime lays it out; the crop that `how` allows is left aside."""
    view = np.empty((*prepare.spec.size, 3), np.uint8)
    size = prepare.into(picture, view, where=where)
    pixels, turn = _finished(view, prepare.spec, how, rng)
    return pixels, lambda boxes: turn(to_input(boxes, prepare.spec, size))


def _finished(
    view: NDArray[np.uint8], spec: Preprocessing, how: Augmentation, rng: Generator
) -> tuple[NDArray[np.float32], Placing]:
    """(H, W, 3) uint8 -> (3, H, W) float32, perhaps flipped, recoloured, normalised; and what that does to boxes of 0-1."""
    pixels: NDArray[np.float32] = view.astype(np.float32) / np.float32(255)
    flipped = rng.random() < how.flip
    pixels = _recoloured(pixels[:, ::-1] if flipped else pixels, how, rng)
    normalised = (pixels - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32), _mirrored if flipped else _kept


def _mirrored(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)


def _kept(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return boxes


def _recoloured(pixels: NDArray[np.float32], how: Augmentation, rng: Generator) -> NDArray[np.float32]:
    """Brightness, contrast, saturation, rarely grey: (H, W, 3) in 0-1. Draws are made whether they are used or not."""
    bright, contrast, saturation = (
        rng.uniform(1 - x, 1 + x) for x in (how.brightness, how.contrast, how.saturation)
    )
    grey = rng.random() < how.grey
    if bright == contrast == saturation == 1 and not grey:
        return pixels
    pixels = pixels * np.float32(bright)
    mean = np.float32((pixels @ _LUMA).mean())
    pixels = mean + (pixels - mean) * np.float32(contrast)
    luma = (pixels @ _LUMA)[..., None]
    pixels = luma + (pixels - luma) * np.float32(0 if grey else saturation)
    clipped: NDArray[np.float32] = np.clip(pixels, 0, 1, dtype=np.float32)
    return clipped
