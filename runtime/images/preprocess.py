"""From a picture to the image tower's `pixels`, as the bundle's preprocessing spec says.

The reference is Pillow's antialiased resize, which every source library uses or follows within 1/255. `decode="exact"` reads
every pixel; `decode="fast"` lets a JPEG be decoded at 1/2, 1/4 or 1/8 as long as both sides keep twice the pixels that are
needed, and shrinks other large pictures by whole factors first: mean difference under 0.5/255, measured in docs/runtime.md.
Where the spec says "gaussian" the reference is scikit-image's resize (runtime/images/gaussian.py), and pixels are no whole levels: in
bytes, for graphs that normalise, up to half a level is lost.
"""

from __future__ import annotations

from concurrent.futures import Executor
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.errors import BundleError, InputError
from edgeclip.runtime import stages
from edgeclip.runtime.images import gaussian
from edgeclip.runtime.images.decode import Color, DecodeLimits, Picture, decode
from edgeclip.runtime.images.geometry import Plan, plan
from edgeclip.runtime.images.resize import Box, reduce_first, resize_crop

Decode = Literal["fast", "exact"]

_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
# Decode at least so many times the pixels needed a side: below it the mean error grows past 0.5/255.
_KEEP = 2
# Exact decoding resizes the whole picture and crops, as the libraries do; a ribbon whose whole would not fit in memory is
# resized within the crop, which may differ by two levels in a few values.
_MOST_WHOLE = 1 << 26  # pixels
_WORTH_SHARING = 100_000  # pixels; waking a thread costs 0.05 ms
_GAP = 3.0  # Pillow's reducing_gap: the same idea for pictures that are no JPEG
_GAP_BLURRED = 4.0  # at 3 a Gaussian loses p99 2.6/255 at a side of 64


class Preprocessor:
    """One spec, ready to use. Holds no state between pictures: any number of threads may share it.

    Args:
        spec: what the bundle says.
        decode: "fast" or "exact", see above.
        limits: what one picture may cost.
    """

    def __init__(
        self, spec: Preprocessing, *, decode: Decode = "fast", limits: DecodeLimits | None = None
    ) -> None:
        if decode not in ("fast", "exact"):
            raise InputError(f'decode: expected "fast" or "exact", got {decode!r}.')
        self._gaussian = spec.resample == "gaussian"
        if spec.mode == "pad" and spec.pad_first and not self._gaussian:
            raise BundleError(
                f'preprocessing: pad_first expects resample "gaussian", the bundle says "{spec.resample}". Export it anew.'
            )
        self.spec, self.decode, self.limits = spec, decode, limits or DecodeLimits()
        self._fast = decode == "fast" and spec.resample != "nearest"
        self._resample = _RESAMPLE.get(spec.resample, Image.Resampling.BILINEAR)
        std = np.asarray(spec.std, np.float64)
        self._scale = (1 / (255 * std)).astype(np.float32)[:, None, None]
        self._shift = (-np.asarray(spec.mean, np.float64) / std).astype(np.float32)[:, None, None]

    def uint8(self, source: Picture, *, color: Color = "rgb", where: str = "image") -> NDArray[np.uint8]:
        """The picture resized, cropped or padded: (H, W, 3) uint8 RGB, H and W as the tower takes them."""
        found = np.empty((*self.spec.size, 3), np.uint8)
        self._write(self._whole(*self._open(source, color, where)), found)
        return found

    def into(
        self,
        source: Picture,
        slot: NDArray[Any],
        *,
        color: Color = "rgb",
        where: str = "image",
        helpers: Executor | None = None,
        parts: int = 1,
    ) -> tuple[int, int]:
        """Write the picture into `slot`: (3, H, W) float32, normalised, or (H, W, 3) uint8 RGB, for graphs that normalise.

        Args:
            helpers: threads that may take a share of the rows when the picture is decoded fast; None: this one does all.
            parts: shares, this thread's included.
        Returns:
            (H, W) of the whole picture, upright.
        """
        begun = stages.begin()  # decoding is told apart from it in `_open`
        size = self._into(source, slot, color, where, helpers, parts)
        stages.end("preprocess", begun)
        return size

    def _into(
        self,
        source: Picture,
        slot: NDArray[Any],
        color: Color,
        where: str,
        helpers: Executor | None,
        parts: int,
    ) -> tuple[int, int]:
        image, layout, box = self._open(source, color, where)
        height, width = self.spec.size
        worth = self._fast and layout.kept == (width, height) and image.width * image.height >= _WORTH_SHARING
        if helpers is None or parts < 2 or not worth:
            self._write(self._whole(image, layout, box), slot)
            return layout.size[::-1]

        def rows(first: int, last: int) -> None:
            piece = self._rows(image, layout, box, first, last)
            self._write(piece, slot[first:last] if slot.dtype == np.uint8 else slot[:, first:last])

        edges = [height * i // parts for i in range(parts + 1)]
        others = [helpers.submit(rows, *pair) for pair in pairwise(edges[1:])]
        rows(edges[0], edges[1])
        for other in others:
            other.result()
        return layout.size[::-1]

    def _open(self, source: Picture, color: Color, where: str) -> tuple[Image.Image, Plan, Box]:
        """The decoded picture, its layout, and where in it the crop lies (or the whole picture, where that is to be blurred)."""
        begun = stages.begin()
        found = decode(
            source,
            color=color,
            at_least=self._needed if self._fast else None,
            background=self.spec.background,
            limits=self.limits,
            where=where,
        )
        stages.end("decode", begun)
        layout = plan(self.spec, *found.size)
        if self._gaussian:
            image, box, size, gap = found.image, found.box, layout.share, _GAP_BLURRED
        else:
            image, box, size, gap = found.image, layout.box(found.box), layout.kept, _GAP
        if self._fast:
            image, box = reduce_first(image, size, box, gap)
        return image, layout, box

    def _rows(self, image: Image.Image, layout: Plan, box: Box, first: int, last: int) -> NDArray[Any]:
        """Rows of an input that the resized canvas fills."""
        height, width = self.spec.size
        if self._gaussian:
            pad = self.spec.pad_color if self.spec.mode == "pad" else (0, 0, 0)
            return gaussian.resample(np.asarray(image), layout, box, pad, (height, width), (first, last))
        step = (box[3] - box[1]) / height
        share = (box[0], box[1] + first * step, box[2], min(box[1] + last * step, box[3]))
        return np.asarray(resize_crop(image, (width, last - first), share, self._resample))

    def _whole(self, image: Image.Image, layout: Plan, box: Box) -> NDArray[Any]:
        """(H, W, 3) of the input: uint8, or float32 levels 0-255 where the reference does not round to bytes."""
        height, width = self.spec.size
        if layout.canvas == layout.resized == layout.kept == image.size == (width, height):
            return np.asarray(image)  # already as wanted: no resize may touch it
        if self._gaussian:
            return self._rows(image, layout, box, 0, height)
        if self._fast or layout.resized[0] * layout.resized[1] > _MOST_WHOLE:
            image = resize_crop(image, layout.kept, box, self._resample)
        else:
            image = image.resize(layout.resized, self._resample).crop(layout.crop)
        if layout.kept != (width, height):
            canvas = Image.new(
                "RGB", (width, height), self.spec.pad_color if self.spec.mode == "pad" else (0, 0, 0)
            )
            canvas.paste(image, layout.paste)
            image = canvas
        return np.asarray(image)

    def _write(self, pixels: NDArray[Any], slot: NDArray[Any]) -> None:
        if slot.dtype == np.uint8:
            slot[:] = pixels if pixels.dtype == np.uint8 else np.rint(pixels)
            return
        np.multiply(pixels.transpose(2, 0, 1), self._scale, out=slot)
        np.add(slot, self._shift, out=slot)

    def _needed(self, width: int, height: int) -> tuple[int, int]:
        share = plan(self.spec, width, height).share
        return _KEEP * share[0], _KEEP * share[1]


def bytes_of(pixels: NDArray[np.float32], spec: Preprocessing) -> NDArray[np.uint8]:
    """(N, 3, H, W) normalised -> (N, H, W, 3) uint8 RGB: the very bytes that `pixels` were made from."""
    levels: NDArray[np.float64] = (
        pixels.transpose(0, 2, 3, 1).astype(np.float64) * spec.std + spec.mean
    ) * 255
    found: NDArray[np.uint8] = np.rint(levels).clip(0, 255).astype(np.uint8)
    return found


def preprocess(
    source: Picture, spec: Preprocessing, *, color: Color = "rgb", decode: Decode = "exact"
) -> NDArray[np.float32]:
    """One picture as (3, H, W) float32, ready for the image tower; exact unless told otherwise."""
    slot = np.empty((3, *spec.size), np.float32)
    Preprocessor(spec, decode=decode).into(source, slot, color=color)
    return slot
