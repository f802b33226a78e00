"""Files, cameras, network streams and GStreamer pipelines through OpenCV."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from edgeclip.errors import InputError
from edgeclip.runtime.video.frames import Buffers, Frame, Image, SourceLost

log = logging.getLogger("edgeclip")


def has_backend(api: int) -> bool:
    """Whether this OpenCV can open sources through `api`, e.g. cv2.CAP_FFMPEG."""
    return bool(cv2.videoio_registry.hasBackend(api))


class OpenCVSource:
    """Frames of a cv2.VideoCapture, in RGB.

    Args:
        target: what cv2 opens: a path, URL, pipeline, or camera number.
        api: cv2.CAP_*.
        settings: pairs of cv2.CAP_PROP_* and values.
        live: None: unless the source says how many frames it has.
    Raises:
        InputError: it cannot be opened.
    """

    def __init__(
        self, name: str, target: str | int, api: int, settings: Sequence[int] = (), live: bool | None = None
    ) -> None:
        self.name, self._api = name, api
        self._capture = cv2.VideoCapture(target, api, list(settings))
        if not self._capture.isOpened():
            raise InputError(f"{name}: cannot be opened{_advice(name, api)}")
        self._count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))  # of a live source 0 or less
        self.live = self._count <= 0 if live is None else live
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if 0 < fps < 1000 else None  # drivers that do not know say 0 or 90,000
        self._buffers, self._number = Buffers(), 0
        self._bgr: Any = None
        self._began = time.monotonic()

    def read(self) -> Frame | None:
        """The next frame; None at the end of a recording."""
        if not self._capture.grab():
            self._end()
            return None
        now = time.monotonic()
        kept, bgr = self._capture.retrieve(self._bgr)  # into the same memory as the last one
        if not kept:
            self._end()
            return None
        self._bgr = bgr
        number, self._number = self._number, self._number + 1
        at = now - self._began if self.live else self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return Frame(self._rgb(bgr), number, at, now, self.name)

    def skip(self) -> bool:
        """Decode no picture where the codec allows that."""
        found = bool(self._capture.grab())
        self._number += found
        if not found:
            self._end()
        return found

    def close(self) -> None:
        """Free the device."""
        self._capture.release()

    def _rgb(self, frame: np.ndarray[Any, Any]) -> Image:
        image = self._buffers.take((*frame.shape[:2], 3))
        code = cv2.COLOR_GRAY2RGB if frame.ndim == 2 or frame.shape[2] == 1 else cv2.COLOR_BGR2RGB
        cv2.cvtColor(frame, code, dst=image)
        return image

    def _end(self) -> None:
        if self.live:
            raise SourceLost(f"{self.name}: no frame came. Is the camera or network still there?")
        if self._number == 0:
            raise InputError(f"{self.name}: no frame can be decoded. Is it a video, and whole?")
        if self._number < 0.9 * self._count:  # containers may count some frames more than there are
            log.warning(
                "%s: ended after %d of %d frames; the file is damaged.", self.name, self._number, self._count
            )
            self._count = 0  # said once


def _advice(name: str, api: int) -> str:
    if api == cv2.CAP_GSTREAMER and not has_backend(api):
        return (
            ": this OpenCV was built without GStreamer. JetPack's own has it: make the environment with "
            "`python3 -m venv --system-site-packages`, and uninstall opencv-python-headless in it."
        )
    if api == cv2.CAP_GSTREAMER:
        return ". Try the same text with gst-launch-1.0, and fakesink in the place of appsink: it says what is wrong."
    if api == cv2.CAP_V4L2:
        return ". Is the camera there (`ls /dev/video*`), in no other program, and may this user open it (group video)?"
    if "://" in name:
        return " as a video. Check the address, its password, and that it plays elsewhere."
    return " as a video. Is it one, and whole?"
