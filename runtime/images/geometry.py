"""Where the tower's input lies in a picture: pure arithmetic, with each library's own rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.manifest import Preprocessing


@dataclass(frozen=True)
class Plan:
    """Put the picture on a canvas, resize that to `resized`, keep `crop` of it, put that at `paste` of the input. All (x, y) pixels."""

    resized: tuple[int, int]  # (W, H) that the whole canvas would have
    crop: tuple[int, int, int, int]  # left, top, right, bottom within `resized`
    paste: tuple[int, int]  # where the crop's left top corner goes in the tower's input
    size: tuple[int, int]  # (W, H) of the picture
    canvas: tuple[int, int]  # (W, H), the picture's unless it is padded first
    stand: tuple[int, int] = (0, 0)  # of the picture's left top corner on the canvas

    @property
    def kept(self) -> tuple[int, int]:
        """(W, H) of the crop."""
        left, top, right, bottom = self.crop
        return right - left, bottom - top

    @property
    def share(self) -> tuple[int, int]:
        """(W, H) that the picture has of the resized canvas, rounded up."""
        width, height = (-(-self.resized[i] * self.size[i] // self.canvas[i]) for i in range(2))
        return width, height

    def box(self, within: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """The crop in the pixels of a canvas that lies at `within`: what `Image.resize(box=)` takes."""
        x0, y0, x1, y1 = within
        x, y = (x1 - x0) / self.resized[0], (y1 - y0) / self.resized[1]
        left, top, right, bottom = self.crop
        return x0 + left * x, y0 + top * y, min(x0 + right * x, x1), min(y0 + bottom * y, y1)


def plan(spec: Preprocessing, width: int, height: int) -> Plan:
    """Lay out a picture of `width` x `height` pixels, after its EXIF orientation."""
    target_height, target_width = spec.size
    corner = spec.pad_anchor == "top_left"
    if spec.mode == "pad" and spec.pad_first:
        side = max(width, height)
        stand = (0, 0) if corner else ((side - width) // 2, (side - height) // 2)
        whole = (0, 0, target_width, target_height)
        return Plan((target_width, target_height), whole, (0, 0), (width, height), (side, side), stand)
    resized = _resized(spec, width, height)
    left, paste_left = _centre(resized[0], target_width, spec.crop_offset)
    top, paste_top = _centre(resized[1], target_height, spec.crop_offset)
    right, bottom = left + min(resized[0], target_width), top + min(resized[1], target_height)
    paste = (0, 0) if spec.mode == "pad" and corner else (paste_left, paste_top)
    return Plan(resized, (left, top, right, bottom), paste, (width, height), (width, height))


def _resized(spec: Preprocessing, width: int, height: int) -> tuple[int, int]:
    target_height, target_width = spec.size
    if spec.mode == "squash":
        return target_width, target_height
    if spec.mode == "pad":
        ratio = max(width / target_width, height / target_height)
    elif spec.long_side == "floor":  # integers, as torchvision and Hugging Face cut them
        short = spec.resize or min(spec.size)
        long = int(short * max(width, height) / min(width, height))
        return (short, long) if width <= height else (long, short)
    else:
        ratio = min(width / (spec.resize or target_width), height / (spec.resize or target_height))
    cut = round if spec.long_side == "round" else int
    return max(1, cut(width / ratio)), max(1, cut(height / ratio))


def _centre(size: int, target: int, rounding: str) -> tuple[int, int]:
    """(start of the crop, start of the paste) along one axis; one of them is 0."""
    if size <= target:
        return 0, (target - size) // 2
    half = (size - target) / 2
    return (round(half) if rounding == "round_half_even" else int(half)), 0


def to_picture(boxes: NDArray[np.float32], spec: Preprocessing, size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes on the tower's input to boxes on the picture.

    Args:
        boxes: (..., 4) xyxy, 0-1 of the input's sides.
        size: (H, W) of the picture, after its EXIF orientation.
    Returns:
        (..., 4) float32 xyxy in pixels of the picture; a box that reaches beyond it still does.
    """
    scale, offset = _affine(spec, size)
    return ((boxes - offset) / scale).astype(np.float32)


def to_input(boxes: NDArray[np.float32], spec: Preprocessing, size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes on the picture to boxes on the tower's input: the inverse of `to_picture`."""
    scale, offset = _affine(spec, size)
    return (boxes * scale + offset).astype(np.float32)


def _affine(spec: Preprocessing, size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """-> (scale, offset), each (4,): input coordinate 0-1 = scale x pixel of the picture + offset."""
    height, width = size
    layout = plan(spec, width, height)
    scale = np.array([layout.resized[i] / layout.canvas[i] for i in range(2)])
    offset = scale * layout.stand + np.array([layout.paste[i] - layout.crop[i] for i in range(2)], np.float64)
    sides = np.array([spec.size[1], spec.size[0]], np.float64)
    return np.tile(scale / sides, 2), np.tile(offset / sides, 2)
