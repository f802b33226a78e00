"""Where frames come from: what a text names, and who opens it."""

from __future__ import annotations

import glob
import re
from importlib.util import find_spec
from pathlib import Path

from edgeclip.errors import InputError
from edgeclip.files import PICTURE_SUFFIXES
from edgeclip.runtime.video import pipelines
from edgeclip.runtime.video.frames import Every, FrameSource
from edgeclip.runtime.video.picture_source import PictureSource

SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt", "rtp")
FORMS = (
    "a picture, a folder of pictures, a glob, a video file, a camera (0, /dev/video0, csi://0), "
    f"a URL ({', '.join(f'{scheme}://' for scheme in SCHEMES)}) or a GStreamer pipeline that ends in appsink"
)
# names of what must not be shown: ?pwd= of an address, user-pw= of rtspsrc
_SECRET = r"[\w-]*(?:pass\w*|pwd|pw|secret|token|key|auth)"


def open_source(
    text: str,
    *,
    every: int = 1,
    transport: pipelines.Transport = "tcp",
    decoder: pipelines.Hardware | None = None,
    codec: pipelines.Codec = "h264",
    size: tuple[int, int] | None = None,
    timeout_s: float = 10.0,
) -> FrameSource:
    """Open what `text` names.

    Args:
        text: one of `FORMS`. A text with " ! " in it is a GStreamer pipeline, and goes to OpenCV unchanged.
        every: give each n-th frame only.
        transport: of RTSP.
        decoder: decode an RTSP stream or a video file in this hardware, through GStreamer; None: FFmpeg, on the CPU.
        codec: for `decoder`.
        size: (W, H) wished of a camera, which takes the nearest that it has; None: its own.
        timeout_s: for opening a network stream, and for each of its frames.
    Raises:
        InputError: nothing of this name, or it cannot be opened. MissingExtraError: it needs PyAV.
    """
    opened = _open(text, transport, decoder, codec, size, timeout_s)
    return opened if every == 1 else Every(opened, every)


def shown(text: str) -> str:
    """The text without a password, for messages and reports: one in an address, its query, or a property of an element."""
    # to the last @: a / of the password's own does not end it
    text = re.sub(r"(://[^:/@\s]*):(?!\d+/)\S*@", r"\1:***@", text)
    return re.sub(rf"(?i)\b({_SECRET}\s*=\s*)(\"[^\"]*\"|[^&\s]+)", r"\1***", text)


def _open(
    text: str,
    transport: pipelines.Transport,
    decoder: pipelines.Hardware | None,
    codec: pipelines.Codec,
    size: tuple[int, int] | None,
    timeout_s: float,
) -> FrameSource:
    if not text.strip():
        raise InputError(f"source: expected {FORMS}, got an empty text.")
    if " ! " in text:
        return _pipeline(text, text, live=None)
    if re.fullmatch(r"\d{1,9}", text) or text.startswith("/dev/video"):
        return _camera(text, size)
    if "://" in text:
        scheme = text.partition("://")[0].lower()
        if scheme == "csi":
            sensor = text[len("csi://") :]
            if not sensor.isdecimal():
                raise InputError(f"{shown(text)}: expected csi:// and the sensor's number, e.g. csi://0.")
            return _pipeline(text, pipelines.csi(int(sensor), size or (1280, 720)))
        if scheme not in SCHEMES:
            raise InputError(f"{shown(text)}: unknown kind of address {scheme!r}. Expected {FORMS}.")
        if decoder and scheme.startswith("rtsp"):
            return _pipeline(text, pipelines.rtsp(text, decoder, codec, transport))
        return _network(text, transport, timeout_s)
    found = _pictures(text)
    if found:
        return PictureSource(text, found)
    return _pipeline(text, pipelines.file(text, decoder, codec), live=False) if decoder else _video(text)


def _pictures(text: str) -> list[Path]:
    """The pictures that a path names; [] for a file that is none."""
    path = Path(text)
    if path.is_dir():
        below = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        if not below:
            raise InputError(
                f"{text}: the folder holds no pictures. Their names end in {', '.join(sorted(PICTURE_SUFFIXES))}."
            )
        return below
    if path.is_file():
        return [path] if path.suffix.lower() in PICTURE_SUFFIXES else []
    names = sorted(Path(name) for name in glob.glob(text, recursive=True))  # noqa: PTH207  (Path.glob refuses absolute patterns)
    if not (files := [name for name in names if name.suffix.lower() in PICTURE_SUFFIXES and name.is_file()]):
        kind = "names no picture; give each video as a source of its own" if names else "no such source"
        raise InputError(f"{text}: {kind}. Expected {FORMS}.")
    return files


def _video(path: str) -> FrameSource:
    import cv2

    from edgeclip.runtime.video.opencv_source import OpenCVSource, has_backend
    from edgeclip.runtime.video.pyav_source import PyAVSource

    if has_backend(cv2.CAP_FFMPEG):
        try:
            return OpenCVSource(path, path, cv2.CAP_FFMPEG, live=False)
        except InputError:
            if find_spec("av") is None:
                raise
    return PyAVSource(
        path, path, {}, 10.0, live=False
    )  # knows more formats, and says what is wrong with the others


def _network(url: str, transport: pipelines.Transport, timeout_s: float) -> FrameSource:
    import cv2

    from edgeclip.runtime.video.opencv_source import OpenCVSource, has_backend
    from edgeclip.runtime.video.pyav_source import PyAVSource

    # OpenCV asks for TCP by itself; another wish it takes from the environment only, for all sources at once
    if transport == "tcp" and has_backend(cv2.CAP_FFMPEG):
        limit = int(timeout_s * 1000)
        limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit)
        return OpenCVSource(shown(url), url, cv2.CAP_FFMPEG, limits)
    options = {"rtsp_transport": transport} if url.lower().startswith("rtsp") else {}
    return PyAVSource(shown(url), url, options, timeout_s)


def _camera(text: str, size: tuple[int, int] | None) -> FrameSource:
    import cv2

    from edgeclip.runtime.video.opencv_source import OpenCVSource, has_backend

    wishes = [cv2.CAP_PROP_BUFFERSIZE, 1]  # the driver keeps no old frames
    if size:
        wishes += [cv2.CAP_PROP_FRAME_WIDTH, size[0], cv2.CAP_PROP_FRAME_HEIGHT, size[1]]
    api = cv2.CAP_V4L2 if has_backend(cv2.CAP_V4L2) else cv2.CAP_ANY
    return OpenCVSource(text, int(text) if text.isdecimal() else text, api, wishes, live=True)


def _pipeline(name: str, text: str, live: bool | None = True) -> FrameSource:
    import cv2

    from edgeclip.runtime.video.opencv_source import OpenCVSource

    return OpenCVSource(shown(name), text, cv2.CAP_GSTREAMER, live=live)
