"""Text as a mask of pixels: OpenCV's strokes for ASCII, a font of this machine for everything else."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edgeclip.errors import InputError

log = logging.getLogger("edgeclip")
MARGIN = 2  # pixels around the text
FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/System/Library/Fonts", "C:/Windows/Fonts",
)  # fmt: skip
_STROKES = cv2.FONT_HERSHEY_SIMPLEX
_ABSENT = "\U0010fffe"  # no character: what a font draws for one that it does not have


def lettering(text: str, height: int, font: str | None = None) -> NDArray[np.uint8]:
    """(h, w) uint8, 255 where the ink is, for letters of about `height` pixels.

    Args:
        font: a font file for text that is not ASCII; None: the first of this machine's fonts that has every letter.
    Raises:
        InputError: the font cannot be read.
    """
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return _strokes(text, height) if text.isascii() else _drawn(text, height, font)


@lru_cache(maxsize=512)  # scores change, but between 0.00 and 1.00
def _strokes(text: str, height: int) -> NDArray[np.uint8]:
    scale, thickness = height / 30, max(1, height // 14)
    (width, above), below = cv2.getTextSize(text, _STROKES, scale, thickness)
    mask = np.zeros((above + below, max(width, 1)), np.uint8)
    cv2.putText(mask, text, (0, above), _STROKES, scale, 255, thickness, cv2.LINE_AA)
    mask.flags.writeable = False
    return mask


@lru_cache(maxsize=512)
def _drawn(text: str, height: int, font: str | None) -> NDArray[np.uint8]:
    path = font or _font_for(frozenset(letter for letter in text if not letter.isascii()))
    if path is None:
        return _strokes(text.encode("ascii", "backslashreplace").decode(), height)
    face = _face(path, height)
    left, top, right, bottom = (int(x) for x in face.getbbox(text))
    picture = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(picture).text((-left, -top), text, fill=255, font=face)
    mask: NDArray[np.uint8] = np.asarray(picture).copy()
    mask.flags.writeable = False
    return mask


@lru_cache(maxsize=16)
def _face(path: str, height: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(path, height)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a font ({error}). Pass a .ttf, .otf or .ttc.") from error


@lru_cache(maxsize=64)
def _font_for(letters: frozenset[str]) -> str | None:
    for path in _fonts():
        try:
            face = ImageFont.truetype(path, 16)
            absent = bytes(face.getmask(_ABSENT))
            if all(bytes(face.getmask(letter)) != absent for letter in letters):
                return path
        except OSError:  # a bitmap font, or one of another kind: the next
            continue
    log.warning(
        "no font on this machine has all of %r: drawn as escapes. Install one, e.g. fonts-noto-cjk.",
        "".join(sorted(letters)),
    )
    return None


@lru_cache(maxsize=1)
def _fonts() -> tuple[str, ...]:
    """Font files, upright sans-serif ones first."""
    found = [
        Path(folder, name)
        for root in FOLDERS
        for folder, _, names in os.walk(Path(root).expanduser())
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc"))
    ]

    def wish(path: Path) -> tuple[bool, bool, str]:
        name = path.name
        odd = any(
            word in name for word in ("Bold", "Italic", "Oblique", "Light", "Thin", "Black", "Mono", "Serif")
        )
        return odd, "Sans" not in name, str(path)

    return tuple(str(path) for path in sorted(found, key=wish))
