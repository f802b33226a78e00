"""Scenes composed from single drawings on varied backgrounds: their boxes are exact and cost nothing.

Scene i depends only on the drawings, the seed and on i. Lengths are pixels of the scene.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 256  # of a scene
SIZES = (16, 200)  # longer side of an object; its logarithm is even
MOST = 10  # objects of a scene
OVERLAP = 0.1  # at most this share of the smaller of two boxes is shared

# A mirrored drawing of these is another name.
_SIDED = re.compile(r"left|right|clockwise|arrow|flag|keycap|button|letter|number|mark|clock|moon|input|sign")
_ROW = tuple[float, float, float, float]

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Drawings:
    """Stored pictures that may stand in a scene."""

    pictures: Picture  # (N, S, S, 4) RGBA of all that are stored
    by_name: dict[str, list[int]]  # name -> rows of `pictures`
    names: list[str]  # from which a scene's are drawn evenly; one may stand here twice


@dataclass(frozen=True)
class Scene:
    """One picture and what is in it. M objects."""

    picture: Picture  # (SIDE, SIDE, 3) RGB
    boxes: Floats  # (M, 4) xyxy: where the object's alpha is above a half
    names: tuple[str, ...]  # M
    rows: tuple[int, ...]  # M: which drawing


def held_back(name: str) -> bool:
    """A tenth of the names, flags left out, that the towers were trained with and boxes never are: do boxes carry over?"""
    share = int(hashlib.sha256(f"without boxes {name}".encode()).hexdigest()[:8], 16) / 2**32
    return share < 0.1 and not name.startswith("flag")


def trained(item: dict[str, Any]) -> bool:
    """Whether an item of training.json stands in the scenes that the detector learns from."""
    return item["split"] == "train" and not held_back(item["name"])


def held_out(item: dict[str, Any]) -> bool:
    """Whether it stands in the scenes that choose the checkpoint, and the threshold."""
    return bool(item["split"] == "validation")


def drawings(folder: Path, kind: str, keep: Callable[[dict[str, Any]], bool]) -> Drawings:
    """What prepare.py stored as `kind`.* and `keep` takes; clip art is drawn a fifth of the time at most."""
    items = json.loads((folder / f"{kind}.json").read_text())
    by_name: dict[str, list[int]] = {}
    art: set[str] = set()
    for row, item in enumerate(items):
        if keep(item):
            by_name.setdefault(item["name"], []).append(row)
            if item["style"] == "clip-art":
                art.add(item["name"])
    rest = sorted(set(by_name) - art)
    often = max(1, round(4 * len(art) / max(1, len(rest))))
    pictures = np.load(folder / f"{kind}.npy", mmap_mode="r")
    return Drawings(pictures, by_name, rest * often + sorted(art))


def compose(source: Drawings, seed: int, number: int, *, varied: bool = True) -> Scene:
    """Scene `number` of a seed.

    Args:
        varied: objects are turned, mirrored, recoloured and outlined, the whole blurred, noisy or compressed; False: as drawn.
    """
    rng = np.random.default_rng([seed, number])
    canvas = _background(rng)
    if rng.random() < 0.35:
        _scribble(canvas, rng)
    sizes = np.exp(rng.uniform(*np.log(SIZES), rng.integers(1, MOST + 1)))
    boxes: list[_ROW] = []
    names: list[str] = []
    rows: list[int] = []
    for size in sorted(sizes.tolist(), reverse=True):  # large ones need room
        again = bool(names) and rng.random() < 0.15
        name = names[-1] if again else source.names[rng.integers(len(source.names))]
        row = int(rng.choice(source.by_name[name]))
        piece = _piece(source.pictures[row], size, rng, varied, mirrored=not _SIDED.search(name))
        if piece is None:
            continue
        box = _place(canvas, piece, boxes, rng)
        if box is not None:
            boxes.append(box)
            names.append(name)
            rows.append(row)
    picture = np.round(canvas * 255).astype(np.uint8)
    if varied:
        picture = _worn(picture, rng)
    return Scene(picture, np.array(boxes, np.float32).reshape(-1, 4), tuple(names), tuple(rows))


def _piece(
    drawing: Picture, size: float, rng: np.random.Generator, varied: bool, mirrored: bool
) -> Floats | None:
    """(h, w, 4) premultiplied RGBA 0-1, its longer side about `size`; None for a drawing without any ink."""
    rgba = np.asarray(drawing, np.float32) / 255
    ys, xs = np.nonzero(rgba[:, :, 3] > 0.5)
    if len(ys) < 4:
        return None
    rgba = rgba[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    alpha = rgba[:, :, 3:]
    if varied:
        rgba = np.concatenate([_recoloured(rgba[:, :, :3], rng), alpha], 2)
        if mirrored and rng.random() < 0.3:
            rgba = rgba[:, ::-1]
    rgba = np.concatenate([rgba[:, :, :3] * rgba[:, :, 3:], rgba[:, :, 3:]], 2)
    height, width = rgba.shape[:2]
    scale = size / max(height, width)
    stretch = float(np.exp(rng.uniform(-0.12, 0.12))) if varied else 1.0
    target = (max(3, round(width * scale * stretch)), max(3, round(height * scale / stretch)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    piece = cv2.resize(np.ascontiguousarray(rgba), target, interpolation=method)
    if varied and rng.random() < 0.5:
        piece = _turned(piece, float(rng.uniform(-15, 15)))
    if varied and rng.random() < 0.12:
        piece = _outlined(piece, max(1, round(size / 40)))
    return piece


def _recoloured(colour: Floats, rng: np.random.Generator) -> Floats:
    grey = colour.mean(2, keepdims=True)
    colour = grey + (colour - grey) * rng.uniform(0.6, 1.4) * (rng.random() > 0.04)
    colour = colour @ (np.eye(3) + rng.uniform(-0.06, 0.06, (3, 3)))
    colour = (colour - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.uniform(-0.12, 0.12)
    return np.clip(colour, 0, 1).astype(np.float32)


def _turned(piece: Floats, degrees: float) -> Floats:
    height, width = piece.shape[:2]
    side = int(np.ceil(np.hypot(height, width)))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    matrix[:, 2] += (side - width) / 2, (side - height) / 2
    return cv2.warpAffine(piece, matrix, (side, side), flags=cv2.INTER_LINEAR)


def _outlined(piece: Floats, width: int) -> Floats:
    """With a white rim, as stickers have it."""
    piece = cv2.copyMakeBorder(piece, width, width, width, width, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
    rim = cv2.dilate(piece[:, :, 3], np.ones((2 * width + 1,) * 2, np.uint8))[:, :, None]
    return piece + np.repeat(rim * (1 - piece[:, :, 3:]), 4, axis=2)


def _place(canvas: Floats, piece: Floats, taken: list[_ROW], rng: np.random.Generator) -> _ROW | None:
    """Draw a piece where it hides little of the others; -> its box, or None where there was no room."""
    ys, xs = np.nonzero(piece[:, :, 3] > 0.5)
    if not len(ys):
        return None
    piece = piece[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    height, width = piece.shape[:2]
    beyond = 0.25 if rng.random() < 0.1 else 0.0  # share that may lie outside the picture
    low = (-int(beyond * width), -int(beyond * height))
    high = (SIDE - width - low[0], SIDE - height - low[1])
    if min(high[0] - low[0], high[1] - low[1]) < 0:
        return None
    for _ in range(20):
        x, y = int(rng.integers(low[0], high[0] + 1)), int(rng.integers(low[1], high[1] + 1))
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, SIDE), min(y + height, SIDE)
        box = (float(x0), float(y0), float(x1), float(y1))
        if all(_shared(box, other) <= OVERLAP for other in taken):
            part = piece[y0 - y : y1 - y, x0 - x : x1 - x]
            under = canvas[y0:y1, x0:x1]
            under *= 1 - part[:, :, 3:]
            under += part[:, :, :3]
            return box
    return None


def _shared(a: _ROW, b: _ROW) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def _background(rng: np.random.Generator) -> Floats:
    """(SIDE, SIDE, 3) 0-1: white, plain, a gradient, clouds, stripes or checks, blotches."""
    kind = rng.choice(6, p=(0.2, 0.2, 0.15, 0.2, 0.1, 0.15))
    if kind == 0:
        return np.full((SIDE, SIDE, 3), rng.choice((1.0, 0.97, 0.94)), np.float32)
    first, second = rng.random(3), rng.random(3)
    if kind == 1:
        mix = np.zeros((SIDE, SIDE))
    elif kind == 2:
        angle = rng.uniform(0, 2 * np.pi)
        across = np.cos(angle) * np.linspace(0, 1, SIDE) + np.sin(angle) * np.linspace(0, 1, SIDE)[:, None]
        mix = (across - across.min()) / np.ptp(across)
    elif kind == 3:
        mix = _clouds(rng, np.exp(rng.uniform(np.log(0.3), np.log(0.9))))
    elif kind == 4:
        period, angle = rng.uniform(4, 40), rng.uniform(0, np.pi)
        x, y = np.arange(SIDE), np.arange(SIDE)[:, None]
        mix = (np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period) > 0).astype(float)
        if rng.random() < 0.5:
            mix = np.abs(mix - (np.sin((np.cos(angle) * y - np.sin(angle) * x) * 2 * np.pi / period) > 0))
        second = first + (second - first) * rng.uniform(0.1, 0.5)
    else:
        cells = rng.random((int(rng.integers(2, 12)),) * 2 + (3,)).astype(np.float32)
        method = cv2.INTER_CUBIC if rng.random() < 0.6 else cv2.INTER_NEAREST
        coloured = cv2.resize(cells, (SIDE, SIDE), interpolation=method)
        return np.clip(first + (coloured - 0.5) * rng.uniform(0.1, 0.8), 0, 1).astype(np.float32)
    canvas = first + (second - first) * mix[:, :, None] * rng.uniform(0.3, 1)
    return np.ascontiguousarray(np.clip(canvas, 0, 1), np.float32)


def _clouds(rng: np.random.Generator, fade: float) -> NDArray[np.float64]:
    """(SIDE, SIDE) 0-1: octaves of noise, each finer one `fade` as strong."""
    total = np.zeros((SIDE, SIDE))
    for octave in range(1, 8):
        noise = rng.standard_normal((2**octave, 2**octave)).astype(np.float32)
        total += fade**octave * cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.clip(0.5 + total / (4 * total.std()), 0, 1)


def _scribble(canvas: Floats, rng: np.random.Generator) -> None:
    """Lines, outlines and writing that no label names."""
    drawn = np.round(canvas * 255).astype(np.uint8)
    for _ in range(int(rng.integers(1, 7))):
        colour = rng.integers(0, 256, 3).tolist()
        a, b = rng.integers(0, SIDE, (2, 2)).tolist()
        thick = int(rng.integers(1, 4))
        kind = rng.integers(4)
        if kind == 0:
            cv2.line(drawn, a, b, colour, thick, cv2.LINE_AA)
        elif kind == 1:
            cv2.rectangle(drawn, a, b, colour, thick)
        elif kind == 2:
            axes = rng.integers(4, 90, 2).tolist()
            cv2.ellipse(drawn, a, axes, float(rng.uniform(0, 180)), 0, 360, colour, thick, cv2.LINE_AA)
        else:
            word = "".join(chr(c) for c in rng.integers(97, 123, int(rng.integers(3, 12))))
            cv2.putText(drawn, word, a, int(rng.integers(0, 4)), float(rng.uniform(0.3, 1)), colour, 1)
    canvas[:] = drawn / 255


def _worn(picture: Picture, rng: np.random.Generator) -> Picture:
    if rng.random() < 0.15:
        picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.4, 1.2))).astype(np.uint8)
    if rng.random() < 0.15:
        noise = rng.standard_normal(picture.shape) * rng.uniform(2, 12)
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))])
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR).astype(np.uint8)
    return picture
