"""A picture blurred by a Gaussian and then scaled bilinearly, in one pass along each axis.

scikit-image keeps fine detail from aliasing so, and OWLv2 was trained with it. Blur and scaling are both linear and work along one
axis at a time: together they are one narrow matrix for each axis, which is applied in blocks of rows. Neither the padded square
nor the blurred picture ever exists, so a ribbon of 1 x 100,000 pixels costs no more than a picture of as many.

What is followed, to float rounding: `scipy.ndimage.gaussian_filter` (cut at 4 sigma) and `zoom(order=1, grid_mode=True)`, both with
mirrored borders, of values that are not rounded to bytes in between. That is transformers' Owlv2ImageProcessorPil and
scikit-image's `resize(anti_aliasing=True)` before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.runtime.images.geometry import Plan

_CUT = 4.0  # sigmas after which the kernel ends
_BLOCK = 8  # outputs at once: fewer waste calls, more multiply zeros

Levels = NDArray[np.float32]


@dataclass(frozen=True)
class _Axis:
    """Where the outputs of one axis lie in an array that holds the picture, in whole or reduced."""

    size: int  # of the picture, pixels
    held: tuple[float, float]  # first and end of the picture in the array
    canvas: int  # length of the padded picture, in its pixels
    stand: int  # where the picture begins on it
    resized: int  # outputs of the whole canvas
    wanted: tuple[int, int]  # first and end of the outputs wanted; those beyond the canvas are padding

    def blocks(self) -> Iterator[tuple[int, int, int, int, Levels]]:
        """(first, end) outputs from (first, end) of the array, with their (outputs, inputs) weights. Outputs of padding are left out."""
        factor, scale = self.canvas / self.resized, self.size / (self.held[1] - self.held[0])
        kernel = _kernel(max(0.0, (factor - 1) / 2) / scale, scale)
        radius = len(kernel) // 2
        outputs = np.arange(*self.wanted)
        centre = ((outputs + 0.5) * factor - self.stand) / scale - 0.5 + self.held[0]
        low = np.floor(centre).astype(np.int64)
        part = (centre - low)[:, None]
        weights = (1 - part) * np.append(kernel, 0) + part * np.append(0, kernel)
        inputs = self._mirrored(low[:, None] + np.arange(-radius, radius + 2), scale)
        # how much of each pixel is picture: that beside it is padding, the last of a reduced one may be a part
        cover = np.minimum(inputs + 1, self.held[1]) - np.maximum(inputs, self.held[0])
        cover[(outputs < 0) | (outputs >= self.resized)] = 0
        if self.stand == 0 and self.canvas == self.size:
            cover = np.ceil(cover)
        seen = cover > 0
        weights = weights * cover
        for first in range(0, len(outputs), _BLOCK):
            block = slice(first, first + _BLOCK)
            row, tap = np.nonzero(seen[block])
            if len(row) == 0:
                continue
            index = inputs[block][row, tap]
            start, end = int(index.min()), int(index.max()) + 1
            dense = np.zeros((len(outputs[block]), end - start))
            np.add.at(dense, (row, index - start), weights[block][row, tap])
            yield first, first + len(dense), start, end, dense.astype(np.float32)

    def _mirrored(self, index: NDArray[np.int64], scale: float) -> NDArray[np.int64]:
        """Beyond the canvas lies its mirror image. Its axis is the middle of the last pixel, which a reduced picture has at its edge."""
        start = math.floor(self.held[0] - self.stand / scale + 1e-6)
        length = math.ceil(self.held[0] + (self.canvas - self.stand) / scale - 1e-6) - start
        twice = int(scale > 1)  # whether the last pixel is its own neighbour
        period = max(1, 2 * length - 2 + 2 * twice)
        index = (index - start) % period
        found: NDArray[np.int64] = (
            np.minimum(index, period - index - twice) + start if length > 1 else index * 0 + start
        )
        return found


def _kernel(sigma: float, scale: float) -> NDArray[np.float64]:
    """(2 radius + 1,) weights of the blur that is left to do.

    A picture that was reduced by `scale` is already blurred by a box of that width (variance 1/12), and bilinear scaling blurs it
    by more than it would the whole picture (1/6): both are taken off.
    """
    sigma = math.sqrt(max(0.0, sigma**2 - (1 - scale**-2) / 4))
    radius = int(_CUT * sigma + 0.5)
    if radius == 0:
        return np.ones(1)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    found: NDArray[np.float64] = weights / weights.sum()
    return found


def resample(
    picture: NDArray[np.uint8],
    layout: Plan,
    held: tuple[float, float, float, float],
    pad: tuple[int, int, int],
    size: tuple[int, int],
    rows: tuple[int, int],
) -> Levels:
    """Blur and scale.

    Args:
        picture: (h, w, 3) uint8 RGB.
        held: left, top, right, bottom of the picture within that array, which may be reduced.
        pad: RGB, 0-255, of what lies beside the picture.
        size: (H, W) of the tower's input.
        rows: first and end of those of the input that are wanted.
    Returns:
        (rows, W, 3) float32 RGB, 0-255.
    """
    down, across = _axis(layout, held, 1, rows), _axis(layout, held, 0, (0, size[1]))
    height, width = rows[1] - rows[0], size[1]
    colour = np.array(pad, np.float32)  # taken off first: what is left of the padding is 0, and needs no work
    scaled = np.zeros((height, picture.shape[1] * 3), np.float32)
    for first, end, start, stop, weights in down.blocks():
        piece = picture[start:stop].astype(np.float32)
        if colour.any():
            piece -= colour
        np.matmul(weights, piece.reshape(stop - start, -1), out=scaled[first:end])
    columns = np.ascontiguousarray(scaled.reshape(height, -1, 3).transpose(1, 0, 2)).reshape(-1, height * 3)
    found = np.zeros((width, height * 3), np.float32)
    for first, end, start, stop, weights in across.blocks():
        np.matmul(weights, columns[start:stop], out=found[first:end])
    levels: Levels = found.reshape(width, height, 3).transpose(1, 0, 2) + colour
    return levels


def _axis(layout: Plan, held: tuple[float, float, float, float], axis: int, wanted: tuple[int, int]) -> _Axis:
    """`axis`: 0 across, 1 down; `wanted`: outputs of the input."""
    first = layout.crop[axis] - layout.paste[axis]  # output of the canvas that the input's first one is
    return _Axis(
        layout.size[axis],
        (held[axis], held[axis + 2]),
        layout.canvas[axis],
        layout.stand[axis],
        layout.resized[axis],
        (wanted[0] + first, wanted[1] + first),
    )
