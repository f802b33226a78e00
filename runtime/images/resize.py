"""Pillow's antialiased resize, of the crop alone."""

from __future__ import annotations

import math

from PIL import Image

Box = tuple[float, float, float, float]

# How far each filter reaches to either side, in output pixels (Pillow, src/libImaging/Resample.c).
_REACH = {
    Image.Resampling.BILINEAR: 1,
    Image.Resampling.BICUBIC: 2,
    Image.Resampling.LANCZOS: 3,
}


def reduce_first(image: Image.Image, size: tuple[int, int], box: Box, gap: float) -> tuple[Image.Image, Box]:
    """Average whole blocks of pixels, so that the resize to `size` that follows still shrinks by `gap`."""
    across = int((box[2] - box[0]) / size[0] / gap) or 1
    down = int((box[3] - box[1]) / size[1] / gap) or 1
    if across == down == 1:
        return image, box
    return image.reduce((across, down)), (box[0] / across, box[1] / down, box[2] / across, box[3] / down)


def resize_crop(
    image: Image.Image, size: tuple[int, int], box: Box, resample: Image.Resampling
) -> Image.Image:
    """Resize what lies in `box` to `size`: the pixels that resizing the whole and cropping would give, within one level.

    Asked for a box, Pillow 13 may run the vertical pass first, and the 8 bits kept in between make that differ by several
    levels at sharp edges. A whole picture that keeps its shape is resized horizontally first, so for a crop the two passes are
    asked for one by one.

    Args:
        size: (W, H) of the result.
        box: left, top, right, bottom in the picture, in pixels and parts of them.
    """
    reach_of_one = _REACH.get(resample)
    if reach_of_one is None or box == (0, 0, *image.size):  # nearest has no passes
        return image.resize(size, resample, box)
    left, top, right, bottom = box
    reach = math.ceil(reach_of_one * max(1.0, (bottom - top) / size[1])) + 1
    first, last = max(0, int(top) - reach), min(image.height, math.ceil(bottom) + reach)
    rows = image.resize((size[0], last - first), resample, (left, first, right, last))
    return rows.resize(size, resample, (0, top - first, size[0], bottom - first))
