"""Detections drawn on a picture: readable on any background, in colours that stay."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.detections import Detections
from edgeclip.runtime.video.frames import Image
from edgeclip.runtime.video.lettering import MARGIN, lettering

RGB = tuple[int, int, int]
HUES, TINTS = 12, ((255, 230), (140, 255), (255, 170))  # of (saturation, value): 36 colours


def draw(
    picture: Image,
    detections: Detections,
    *,
    by: Literal["label", "track"] = "label",
    font: str | None = None,
) -> Image:
    """Boxes, with label, score and track id, on a copy of the picture.

    Args:
        picture: (H, W, 3) uint8 RGB.
        detections: of this picture.
        by: what the colour stands for: "label", or "track" where there are track ids.
        font: a TrueType or OpenType file for labels that are not ASCII; None: one of this machine's that has the letters.
    Returns:
        (H, W, 3) uint8 RGB, the caller's own.
    Raises:
        InputError: another shape or dtype, or a size that is not the detections' own.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise InputError(f"draw: expected (H, W, 3) uint8 RGB, got {picture.shape} {picture.dtype}.")
    if picture.shape[:2] != tuple(detections.size):
        raise InputError(
            f"draw: the detections are of a picture of {detections.size} (H, W), got one of {picture.shape[:2]}."
        )
    canvas: Image = picture.copy()
    line, height = max(1, round(min(picture.shape[:2]) / 250)), max(10, round(min(picture.shape[:2]) / 32))
    depths = depths_of(detections.parents, len(detections))
    colours = colours_of(detections.labels)
    boxes = np.rint(detections.boxes).astype(np.int64)
    for i in reversed(range(len(detections))):  # the best one last, on top
        index = int(detections.label_indices[i])
        track = -1 if detections.track_ids is None else int(detections.track_ids[i])
        own = colour(track) if by == "track" and track >= 0 else colours[index]
        width = max(1, line - int(depths[i]) * max(1, line // 2))
        _box(canvas, boxes[i], own, width)
        text = f"{detections.labels[index]} {detections.scores[i]:.2f}" + (f" #{track}" if track >= 0 else "")
        _plate(canvas, boxes[i], text, own, height, font)
    return canvas


def depths_of(parents: NDArray[np.int64] | None, count: int) -> NDArray[np.int64]:
    """(M,) how many detections each one lies within: 0, or more for nested prompts."""
    depths = np.zeros(count, np.int64)
    at = np.full(count, -1, np.int64) if parents is None else parents.copy()
    while (inner := at >= 0).any() and depths.max(initial=0) < count:
        depths[inner] += 1
        at[inner] = parents[at[inner]]  # type: ignore[index]  # only with parents is anything inner
    return depths


def colours_of(labels: tuple[str, ...]) -> list[RGB]:
    """A colour for each label: by its text, so that it stays when other prompts come and go; two share one only beyond 36."""
    taken: dict[int, str] = {}
    found = []
    for label in labels:
        wish = crc32(label.encode()) % (HUES * len(TINTS))
        for step in range(HUES * len(TINTS)):
            number = (wish + step) % (HUES * len(TINTS))
            if taken.setdefault(number, label) == label:
                break
        found.append(colour(number))
    return found


@lru_cache(maxsize=HUES * len(TINTS))
def _colour(number: int) -> RGB:
    saturation, value = TINTS[number // HUES]
    hue = number % HUES * 180 // HUES  # OpenCV counts half degrees
    pixel = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def colour(number: int) -> RGB:
    """One of 36 colours; numbers that follow each other are far apart."""
    return _colour(number * 5 % (HUES * len(TINTS)))


def _box(canvas: Image, box: NDArray[np.int64], colour: RGB, width: int) -> None:
    bottom, right = canvas.shape[0] - 1, canvas.shape[1] - 1
    x0, y0, x1, y1 = box.tolist()
    corners = (
        (min(max(x0, 0), right), min(max(y0, 0), bottom)),
        (
            min(max(x1 - 1, 0), right),
            min(max(y1 - 1, 0), bottom),
        ),
    )
    cv2.rectangle(canvas, *corners, (0, 0, 0), width + 2)  # a dark rim: seen on the colour itself
    cv2.rectangle(canvas, *corners, colour, width)


def _plate(
    canvas: Image, box: NDArray[np.int64], text: str, colour: RGB, height: int, font: str | None
) -> None:
    """The text on a plate above the box, or within it where the picture ends."""
    mask = lettering(text, height, font)  # (h, w) 0-255
    full, across = mask.shape[0] + 2 * MARGIN, mask.shape[1] + 2 * MARGIN
    top = int(box[1]) - full if box[1] >= full else int(box[1])
    left = max(0, min(int(box[0]), canvas.shape[1] - across))
    top = max(0, min(top, canvas.shape[0] - full))
    place = canvas[top : top + full, left : left + across]
    if place.size == 0:
        return
    place[:] = colour
    inner = place[MARGIN : full - MARGIN, MARGIN : across - MARGIN]
    inner[:] = _shades(colour)[mask[: inner.shape[0], : inner.shape[1]]]


@lru_cache(maxsize=HUES * len(TINTS))
def _shades(colour: RGB) -> NDArray[np.uint8]:
    """(256, 3): from the plate's colour to the ink on it, black or white, whichever is further."""
    ink = 0 if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else 255
    share = np.arange(256)[:, None] / 255
    return np.rint(np.array(colour) * (1 - share) + ink * share).astype(np.uint8)
