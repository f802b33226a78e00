"""Files and network streams through PyAV: where OpenCV has no FFmpeg of its own, or an option that it cannot pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.runtime.video.frames import Frame, SourceLost


def pyav() -> Any:
    """The package `av`. Raises MissingExtraError."""
    try:
        import av
    except ImportError as error:
        raise MissingExtraError(
            "PyAV is not installed, and this needs it. pip install 'edgeclip[video]'."
        ) from error
    return av


class PyAVSource:
    """Frames of the first video track, in RGB and upright.

    Args:
        target: path or URL.
        options: of FFmpeg, e.g. {"rtsp_transport": "udp"}.
        timeout_s: for opening, and for each read.
        live: None: unless the container knows its length.
    Raises:
        InputError: it cannot be opened, or holds no video. MissingExtraError: no PyAV.
    """

    def __init__(
        self, name: str, target: str, options: Mapping[str, str], timeout_s: float, live: bool | None = None
    ) -> None:
        av = pyav()
        self.name, self._failures = name, (av.FFmpegError, OSError)
        try:
            self._container = av.open(target, options=dict(options), timeout=timeout_s)
        except self._failures as error:
            # no cause: its text, in a traceback, is the address with its password
            raise InputError(f"{name}: cannot be opened as a video ({_reason(error)}).") from None
        if not self._container.streams.video:
            self._container.close()
            raise InputError(f"{name}: holds no video track.")
        track = self._container.streams.video[0]
        self.live = self._container.duration is None if live is None else live
        if not self.live:
            track.thread_type = "AUTO"  # decoding ahead on several threads adds frames of delay
        self.fps = float(track.average_rate) if track.average_rate else None
        self._frames: Iterator[Any] = self._container.decode(track)
        self._began, self._start, self._number = time.monotonic(), None, 0

    def read(self) -> Frame | None:
        """The next frame; None at the end of a recording."""
        decoded = self._next()
        if decoded is None:
            return None
        now, number = time.monotonic(), self._number - 1
        image = decoded.to_ndarray(format="rgb24")
        if turn := round((getattr(decoded, "rotation", 0) or 0) / 90) % 4:
            image = np.ascontiguousarray(np.rot90(image, turn))
        at = now - self._began
        if not self.live and decoded.time is not None:
            self._start = decoded.time if self._start is None else self._start
            at = decoded.time - self._start
        return Frame(image, number, at, now, self.name)

    def skip(self) -> bool:
        """Pass over one frame; it is decoded, as the next may build on it."""
        return self._next() is not None

    def close(self) -> None:
        """Close the connection."""
        self._container.close()

    def _next(self) -> Any:
        try:
            found = next(self._frames)
        except StopIteration:
            found, reason = None, "the stream ended"
        except self._failures as error:
            found, reason = None, _reason(error)
            if not self.live:
                raise SourceLost(f"{self.name}: damaged after {self._number} frames ({reason}).") from None
        self._number += found is not None
        if found is None and self.live:
            raise SourceLost(f"{self.name}: no frame came ({reason}).")
        if found is None and self._number == 0:
            raise InputError(f"{self.name}: no frame can be decoded. Is it a video, and whole?")
        return found


def _reason(error: BaseException) -> str:
    if type(error).__name__ == "ExitError":  # how FFmpeg names a timeout of ours
        return "nothing came in time"
    return getattr(error, "strerror", None) or type(error).__name__
