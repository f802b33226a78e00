"""From whatever holds a picture to 8-bit RGB, in whole or at a reduced scale, with the dangerous ones refused.

What protects against hostile files: only the formats of `FORMATS` are tried; the header's size is checked before a pixel is
decoded; files and progressive scans are counted; and a clock is read at every block that the decoder asks for, so that a slow
decode ends within one block of its deadline.
"""

from __future__ import annotations

import io
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgeclip.errors import InputError

Color = Literal["rgb", "bgr", "nv12", "yuyv"]
Picture = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, NDArray[np.uint8], Image.Image]

# In the order they are tried: Pillow imports the last three's decoders only when they are reached. JPEG includes MPO.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF")
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
# The turns after which the stored picture's right end lies left, and its lower end on top.
_FROM_RIGHT, _FROM_BOTTOM = (2, 3, 6, 7), (3, 4, 7, 8)


@dataclass(frozen=True)
class DecodeLimits:
    """What one picture may cost. Pillow itself refuses pictures above 178,956,970 pixels, whatever is set here."""

    max_pixels: int = 178_956_970  # of the header, before any pixel is decoded
    max_bytes: int = 256 << 20  # of the encoded file
    max_scans: int = 64  # of a progressive JPEG; encoders write 10 or fewer
    deadline_s: float = 10.0  # from opening to the last pixel


@dataclass(frozen=True)
class Decoded:
    """An upright 8-bit RGB picture, in whole or scaled down."""

    image: Image.Image
    size: tuple[int, int]  # (W, H) of the whole picture, upright
    box: tuple[
        float, float, float, float
    ]  # where it lies in `image`: a scaled JPEG's last pixel may be a part of one


def decode(
    source: Picture,
    *,
    color: Color = "rgb",
    at_least: Callable[[int, int], tuple[int, int]] | None = None,
    background: tuple[int, int, int] | None = None,
    limits: DecodeLimits | None = None,
    where: str = "image",
) -> Decoded:
    """A picture as 8-bit RGB, upright.

    Args:
        source: path, encoded bytes, PIL image, or uint8 array: (H, W, 3) RGB or, with `color="bgr"`, BGR; (H, W) grey; (H, W, 4)
            RGBA or BGRA; `color="nv12"`: (H * 3 / 2, W), `color="yuyv"`: (H, W, 2), both BT.601 limited range, as cameras give.
        color: how an array's channels are meant. Files and PIL images know it themselves.
        at_least: given the upright (W, H), the (W, H) that the caller needs; a JPEG is then decoded at 1/2, 1/4 or 1/8
            where that keeps both. None: every pixel is decoded.
        background: composite transparent pixels on this RGB colour; None: drop the alpha channel, as `convert("RGB")` does.
        limits: what the picture may cost.
        where: names the picture in messages; a path names itself.
    Raises:
        InputError: missing, empty, no picture, truncated, too large, too slow, or an array of another shape or dtype.
    """
    if isinstance(source, np.ndarray):
        return _whole(_rgb(_from_array(source, color, where), background, where))
    if color != "rgb":
        raise InputError(
            f"{where}: color={color!r} is for arrays only; files and PIL images state their own colours."
        )
    limits = limits or DecodeLimits()
    if isinstance(source, Image.Image):
        image, opened = source, False
    else:
        where = str(source) if isinstance(source, (str, os.PathLike)) else where
        image, opened = _open(source, limits, where), True
    try:
        return _load(image, at_least if opened else None, background, where)
    except InputError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error...
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{where}: the picture cannot be decoded ({reason}). It is truncated or damaged: copy it again."
        ) from error


def _from_array(array: NDArray[np.uint8], color: Color, where: str) -> Image.Image:
    if array.dtype != np.uint8 or 0 in array.shape:
        raise InputError(
            f"{where}: expected a uint8 array with at least one pixel, got {array.shape} {array.dtype}. "
            "For floats in 0-1, pass (image * 255).round().astype(np.uint8)."
        )
    if color in ("nv12", "yuyv"):
        return Image.fromarray(_from_camera(array, color, where))
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)):
        if color == "bgr" and array.ndim == 3:
            array = array[:, :, [2, 1, 0, *range(3, array.shape[2])]]
        return Image.fromarray(array)
    raise InputError(
        f"{where}: expected (H, W, 3) {color.upper()}, (H, W, 4) or (H, W), got {array.shape}. For (3, H, W), transpose it."
    )


def _from_camera(array: NDArray[np.uint8], color: Color, where: str) -> NDArray[np.uint8]:
    import cv2  # late: 0.1 s that only frames need

    if color == "nv12":
        good = array.ndim == 2 and array.shape[0] % 3 == 0 and array.shape[1] % 2 == 0
        wanted, code = "(H * 3 / 2, W) with H and W even", cv2.COLOR_YUV2RGB_NV12
    else:
        good = array.ndim == 3 and array.shape[2] == 2 and array.shape[1] % 2 == 0
        wanted, code = "(H, W, 2) with W even", cv2.COLOR_YUV2RGB_YUY2
    if not good:
        raise InputError(f"{where}: expected a {color} frame {wanted}, got {array.shape}.")
    return np.asarray(cv2.cvtColor(array, code), np.uint8)


class _Timed(io.BytesIO):
    """Encoded bytes that stop flowing at a deadline."""

    def __init__(self, data: bytes | bytearray | memoryview, limits: DecodeLimits, where: str) -> None:
        super().__init__(data)
        self._limits, self._where = limits, where
        self._end = time.monotonic() + limits.deadline_s

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._end:
            raise InputError(
                f"{self._where}: decoding took longer than {self._limits.deadline_s:g} s. Save it anew as a plain JPEG, or raise deadline_s."
            )
        return super().read(size)


def _open(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview, limits: DecodeLimits, where: str
) -> Image.Image:
    data = _read(source, limits, where) if isinstance(source, (str, os.PathLike)) else source
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InputError(
            f"{where}: expected a path, bytes, a PIL image or a uint8 array, got {type(source).__name__}."
        )
    if len(data) == 0:
        raise InputError(f"{where}: the file is empty. Copy it again.")
    if len(data) > limits.max_bytes:
        raise InputError(
            f"{where}: {len(data)} bytes; the limit is {limits.max_bytes}. Save it smaller, or raise max_bytes."
        )
    try:
        image = Image.open(_Timed(data, limits, where), formats=FORMATS)
    except (UnidentifiedImageError, KeyError) as error:  # KeyError: a Pillow older than 11.3, without AVIF
        raise InputError(
            f"{where}: not a picture that can be read. Known formats: {', '.join(FORMATS)}."
        ) from error
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{where}: too many pixels ({error}). Save it smaller.") from error
    except Exception as error:
        raise InputError(
            f"{where}: the picture's header is damaged ({error or type(error).__name__}). Copy it again."
        ) from error
    if image.width * image.height > limits.max_pixels:
        raise InputError(
            f"{where}: {image.width} x {image.height} pixels; the limit is {limits.max_pixels}. Save it smaller, or raise max_pixels."
        )
    if image.info.get("progressive") and (scans := bytes(data).count(b"\xff\xda")) > limits.max_scans:
        raise InputError(
            f"{where}: a progressive JPEG of {scans} scans; the limit is {limits.max_scans}. Save it as a plain JPEG."
        )
    return image


def _read(path: str | os.PathLike[str], limits: DecodeLimits, where: str) -> bytes:
    try:
        facts = Path(path).stat()
        if not stat.S_ISREG(facts.st_mode):  # a pipe or device would block or never end
            raise InputError(f"{where}: not a file. Expected the path of a picture.")
        if facts.st_size > limits.max_bytes:
            raise InputError(
                f"{where}: {facts.st_size} bytes; the limit is {limits.max_bytes}. Save it smaller, or raise max_bytes."
            )
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _load(
    image: Image.Image,
    at_least: Callable[[int, int], tuple[int, int]] | None,
    background: tuple[int, int, int] | None,
    where: str,
) -> Decoded:
    turn = _orientation(image)
    width, height = image.size
    drafted = None
    if at_least is not None and image.format in ("JPEG", "MPO"):
        need = at_least(height, width)[::-1] if turn in _SIDEWAYS else at_least(width, height)
        drafted = image.draft(None, need)  # None: the mode stays, only the scale is wanted
    image.load()
    # a part of a pixel where the scale does not divide the size
    end_x, end_y = drafted[1][2:] if drafted else (width, height)
    upright = _rgb(image, background, where)
    if turn == 1:
        return Decoded(upright, (width, height), (0, 0, end_x, end_y))
    upright = upright.transpose(_UPRIGHT[turn])
    if turn in _SIDEWAYS:
        width, height, end_x, end_y = height, width, end_y, end_x
    left = upright.width - end_x if turn in _FROM_RIGHT else 0
    top = upright.height - end_y if turn in _FROM_BOTTOM else 0
    return Decoded(upright, (width, height), (left, top, left + end_x, top + end_y))


def _whole(image: Image.Image) -> Decoded:
    return Decoded(image, image.size, (0, 0, *image.size))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Pillow has already turned a TIFF when it is loaded."""
    try:
        turn = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged notes about a picture do not make the picture unusable
        return 1
    return turn if turn in _UPRIGHT and image.format != "TIFF" else 1


def _rgb(image: Image.Image, background: tuple[int, int, int] | None, where: str) -> Image.Image:
    """8-bit RGB. 16-bit pictures keep their high byte; palettes, CMYK and grey go Pillow's way."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F"):
        raise InputError(
            f"{where}: a 32-bit picture (mode {image.mode}) has no agreed range; save it with 8 bits a channel."
        )
    if image.mode.startswith("I;16"):
        grey = np.asarray(image, np.uint16) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if background is not None and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        front = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", front.size, (*background, 255)), front).convert("RGB")
    return image.convert("RGB")
