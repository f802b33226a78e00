"""Pictures and texts on which an exported graph is compared with its source."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Preprocessing, TextSettings
from edgeclip.errors import InputError
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.text import Encoded, TextEncoder

log = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}
MADE_UP = 16  # pictures, when none are given
MAX_PICTURES = 256

_THINGS = (
    "a cat", "two dogs", "an empty street", "a bowl of soup", "a red bicycle", "three people at a table", "snow",
    "a train crossing a bridge at dusk", "a child's drawing of a house", "the number 42", "a close-up of green leaves",
    "a man riding a horse along the beach", "traffic lights", "an old wooden boat", "a slice of pizza on a plate",
)  # fmt: skip
TEXTS: tuple[str, ...] = (
    *(f"a photo of {thing}" for thing in _THINGS),
    *_THINGS,
    "Ein kleines Café in München, über dem die Sonne untergeht",
    "東京タワーの夜景",
    "кошка спит на подоконнике",
    "قطة تنام على النافذة",
    "🐱 + 🐶 = ❤️",
    "ALL CAPITALS, punctuation!!! and   spaces",
    "&lt;b&gt;markup&lt;/b&gt; http://example.org/?q=1&r=2",
    "3.14159 26535",
)
EXTREME_TEXTS: tuple[str, ...] = ("", "a", "word " * 400)  # empty, one token, cut


def made_up_pictures(count: int = MADE_UP) -> list[NDArray[np.uint8]]:
    """Pictures from arithmetic alone, of different shapes, colours and textures: (H, W, 3) uint8 RGB each."""
    return [_made_up(i) for i in range(count)]


def _made_up(i: int) -> NDArray[np.uint8]:
    height, width = 96 + 16 * (i % 5), 160 - 16 * (i % 4)
    y, x = np.mgrid[0:height, 0:width] / 32.0
    angle, pitch = 0.7 * i, 0.5 + 0.45 * (i % 7)
    waves = np.sin(pitch * 6 * (x * np.cos(angle) + y * np.sin(angle)))
    rings = np.cos((2 + i % 3) * 3 * np.hypot(x - 1 - i % 4, y - 1.5))
    boxes = ((np.floor(x * (1 + i % 3)) + np.floor(y * 2)) % 2) * 2 - 1
    layers = [waves, rings, boxes]
    colour = np.stack(
        [
            layers[(i + c) % 3] * (0.35 + 0.1 * ((i * (c + 2)) % 5)) + 0.4 * np.sin(i + 2 * c)
            for c in range(3)
        ],
        -1,
    )
    picture: NDArray[np.uint8] = np.clip((colour + 1) * 127.5, 0, 255).astype(np.uint8)
    return picture


def pixels_of(pictures: Sequence[Path | NDArray[np.uint8]], spec: Preprocessing) -> NDArray[np.float32]:
    """(N, 3, H, W) float32, every pixel decoded. A picture that cannot be used is reported and left out."""
    preprocessor, rows = Preprocessor(spec, decode="exact"), []
    for picture in pictures:
        row = np.empty((3, *spec.size), np.float32)
        try:
            preprocessor.into(picture, row)
        except InputError as error:
            log.warning("left out of the comparison: %s", error)
            continue
        rows.append(row)
    if len(rows) < 2:
        raise InputError(f"--images: the comparison needs at least 2 usable pictures, found {len(rows)}.")
    return np.stack(rows)


def pictures_in(folder: Path) -> list[Path]:
    """Picture files below a folder, in a stable order, at most MAX_PICTURES. Raises InputError when there are none."""
    if not folder.is_dir():
        raise InputError(f"--images {folder}: no such folder.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise InputError(f"--images {folder}: holds no pictures. They end in {', '.join(sorted(SUFFIXES))}.")
    return found[:MAX_PICTURES]


def texts_in(file: Path) -> tuple[str, ...]:
    """Lines of a UTF-8 file, without empty ones. Raises InputError when it cannot be read or holds fewer than two."""
    try:
        lines = tuple(line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--texts {file}: cannot be read ({error}). Expected UTF-8 text, one a line."
        ) from error
    if len(lines) < 2:
        raise InputError(f"--texts {file}: expected at least 2 lines of text, found {len(lines)}.")
    return lines


def encode(texts: Sequence[str], tokenizer: Path, settings: TextSettings) -> Encoded:
    """(N, L) int32 ids as the runtime makes them, without its warning about texts that were cut on purpose."""
    logger = logging.getLogger("edgeclip.runtime.text.tokenize")
    disabled, logger.disabled = logger.disabled, True
    try:
        return TextEncoder.open(tokenizer, settings).encode(texts)
    finally:
        logger.disabled = disabled
