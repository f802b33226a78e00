"""Where results go: an annotated video, annotated pictures, JSON Lines, a window."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Protocol

import cv2
import numpy as np
from PIL import Image as Pillow

from edgeclip.errors import InputError
from edgeclip.runtime.video.frames import Frame, Image

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi")


class Sink(Protocol):
    """Takes annotated frames."""

    def write(self, frame: Frame, image: Image) -> None:
        """One frame, drawn upon."""

    def close(self) -> None:
        """Finish the file."""


def open_sink(path: str, fps: float | None) -> Sink:
    """A video where the name ends in one of `VIDEO_SUFFIXES`, else a folder of pictures.

    Args:
        fps: of the source; None: unknown, 30.
    Raises:
        InputError: a suffix of something else, or a place that cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return VideoSink(Path(path), fps or 30.0)
    if suffix:
        raise InputError(
            f"{path}: cannot save as {suffix}. Expected a video ({', '.join(VIDEO_SUFFIXES)}) or a folder for pictures."
        )
    return PictureSink(Path(path))


class VideoSink:
    """A video file, whole or absent: written beside its place, and moved in by `close`, also after an interruption.

    H.264 by PyAV where it is installed, with each frame at its own time; else MPEG-4 by OpenCV at a constant rate, where a frame
    is repeated for as long as it lasted. The first frame decides the size; one of another size is fitted into it.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._written, self._size = 0, (0, 0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
            os.close(handle)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}). Choose another place."
            ) from error
        self._scratch = Path(name)
        self._encoder: _Encoder | None = None

    def write(self, frame: Frame, image: Image) -> None:
        """Add a frame. Raises InputError when the disk or the encoder refuses it."""
        with self._telling():
            if self._encoder is None:
                self._size = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2  # what 4:2:0 video can have
                self._encoder = _encoder(str(self._scratch), self._fps, self._size)
            self._encoder.write(fitted(image, self._size), frame.time_s)
        self._written += 1

    def close(self) -> None:
        """Finish the file and move it in; without a frame there is none."""
        if not self._scratch.exists():
            return
        try:
            if self._encoder is not None:
                encoder, self._encoder = self._encoder, None
                with self._telling():
                    encoder.close()
            if self._written:
                umask = os.umask(0)
                os.umask(umask)
                self._scratch.chmod(0o666 & ~umask)
                self._scratch.replace(self._path)
        finally:
            self._scratch.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _telling(self) -> Any:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self._path}: the video cannot be written ({reason}).") from error


class PictureSink:
    """A JPEG for each frame: of a picture its own name, of a video frame-000012.jpg."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._used = folder, set[str]()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({error.strerror}). Choose another place.") from error

    def write(self, frame: Frame, image: Image) -> None:
        """Write one picture. Raises InputError: it cannot be written, or would lie among the pictures of the source."""
        if frame.picture:
            not_among(frame.name, self._folder)
        stem = Path(frame.name).stem if frame.picture else f"frame-{frame.number:06d}"
        if frame.picture:
            stem = (
                stem if stem not in self._used else f"{stem}-{frame.number}"
            )  # folders below may repeat names
            self._used.add(stem)
        place, scratch = self._folder / f"{stem}.jpg", self._folder / f".{stem}.jpg"
        try:
            try:
                Pillow.fromarray(image).save(scratch, quality=92)
                scratch.replace(place)  # whoever looks into the folder meanwhile sees whole pictures
            finally:
                scratch.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{place}: cannot be written ({error.strerror or error}).") from error

    def close(self) -> None:
        """Every picture is whole already."""


class JsonLines:
    """One object a line, handed to the system at once: a program may follow the file. "-" is stdout."""

    def __init__(self, path: str) -> None:
        self._path, self._stream = path, _open_text(path)

    def write(self, record: dict[str, Any]) -> None:
        """Write one line. Raises InputError; a closed pipe stays BrokenPipeError."""
        try:
            self._stream.write(json.dumps(record, ensure_ascii=self._stream is sys.stdout) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written ({error.strerror}).") from error

    def close(self) -> None:
        """Close the file."""
        if self._stream is not sys.stdout:
            with contextlib.suppress(OSError):  # a line that was refused is told; closing tries it once more
                self._stream.close()


class Window:
    """A window of OpenCV's. Raises InputError where it was built without."""

    def __init__(self, title: str) -> None:
        self._title = title
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise InputError(
                "--show: this OpenCV has no windows (opencv-python-headless), or there is no display. Use --save, or "
                "`edgeclip demo` in a browser; or pip uninstall opencv-python-headless and pip install opencv-python."
            ) from error

    def show(self, image: Image) -> bool:
        """Show one frame; False once q or Esc was pressed or the window closed."""
        cv2.imshow(self._title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(1) & 0xFF
        return key not in (ord("q"), 27) and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1

    def close(self) -> None:
        """Close it."""
        cv2.destroyWindow(self._title)


def not_among(picture: str, folder: Path) -> None:
    """Raises InputError: the folder for annotated copies is the picture's own, where a copy would take its place."""
    if Path(picture).resolve().parent == folder.resolve():
        raise InputError(
            f"{folder}: holds {picture} itself. Expected another folder for the annotated copies."
        )


def fitted(image: Image, size: tuple[int, int]) -> Image:
    """The picture within (H, W): the same pixels where it is as large or one larger, else scaled, with black beside it."""
    height, width = size
    if image.shape[0] - height in (0, 1) and image.shape[1] - width in (0, 1):
        return image[:height, :width]
    scale = min(height / image.shape[0], width / image.shape[1])
    inner = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + inner[0], left : left + inner[1]] = cv2.resize(
        image, inner[::-1], interpolation=cv2.INTER_AREA
    )
    return canvas


class _Encoder(Protocol):
    def write(self, image: Image, time_s: float) -> None: ...
    def close(self) -> None: ...


def _encoder(path: str, fps: float, size: tuple[int, int]) -> _Encoder:
    try:
        import av

        av.codec.Codec("libx264", "w")
    except (ImportError, ValueError):  # PyAV names a missing encoder by a ValueError
        return _OpenCVEncoder(path, fps, size)
    return _PyAVEncoder(path, fps, size)


class _PyAVEncoder:
    TICKS = 90_000  # a second, as MPEG counts

    def __init__(self, path: str, fps: float, size: tuple[int, int]) -> None:
        import av

        self._av, self._container = av, av.open(path, "w")
        self._track: Any = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._track.height, self._track.width = size
        self._track.pix_fmt, self._track.options = "yuv420p", {"preset": "veryfast", "crf": "23"}
        self._track.codec_context.time_base = Fraction(1, self.TICKS)
        self._first: float | None = None
        self._last = -1

    def write(self, image: Image, time_s: float) -> None:
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        self._first = time_s if self._first is None else self._first
        self._last = max(round((time_s - self._first) * self.TICKS), self._last + 1)  # time goes on
        frame.pts, frame.time_base = self._last, Fraction(1, self.TICKS)
        self._container.mux(self._track.encode(frame))

    def close(self) -> None:
        self._container.mux(self._track.encode())
        self._container.close()


class _OpenCVEncoder:
    def __init__(self, path: str, fps: float, size: tuple[int, int]) -> None:
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(path, cv2.CAP_ANY, code, fps, (size[1], size[0]))
        if not self._writer.isOpened():
            raise ValueError("this OpenCV cannot encode mp4v; pip install 'edgeclip[video]'")
        self._fps, self._written = fps, 0
        self._first: float | None = None

    def write(self, image: Image, time_s: float) -> None:
        self._first = time_s if self._first is None else self._first
        due = round((time_s - self._first) * self._fps) + 1 - self._written
        frame = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        for _ in range(max(1, min(due, round(self._fps) + 1))):  # a camera away for an hour is one second
            self._writer.write(frame)
            self._written += 1

    def close(self) -> None:
        self._writer.release()


def _open_text(path: str) -> IO[str]:
    if path == "-":
        return sys.stdout
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # a file name that is no Unicode: what is written for its bytes is JSON's own escape
        return Path(path).open("w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from error
