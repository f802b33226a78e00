"""GStreamer pipelines that decode in hardware, as text. OpenCV runs them where it was built with GStreamer (JetPack's own is)."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from edgeclip.errors import InputError

Hardware = Literal["jetson", "nvdec", "vaapi"]
Codec = Literal["h264", "h265"]
Transport = Literal["tcp", "udp"]

# What decodes, and what brings the picture into the CPU's memory: elements of JetPack's nvvideo4linux2 and nvvidconv, of
# gst-plugins-bad's nvcodec, and of its va plugin.
_DECODERS: dict[Hardware, tuple[dict[Codec, str], str]] = {
    "jetson": (
        {"h264": "nvv4l2decoder enable-max-performance=1", "h265": "nvv4l2decoder enable-max-performance=1"},
        "nvvidconv ! video/x-raw,format=BGRx",
    ),
    "nvdec": ({"h264": "nvh264dec", "h265": "nvh265dec"}, "cudadownload"),
    "vaapi": ({"h264": "vah264dec", "h265": "vah265dec"}, "vapostproc ! video/x-raw,format=BGRx"),
}
_DEMUXERS = {".mp4": "qtdemux", ".mov": "qtdemux", ".m4v": "qtdemux", ".mkv": "matroskademux", ".webm": "matroskademux", ".ts": "tsdemux"}  # fmt: skip
_BGR = "videoconvert ! video/x-raw,format=BGR"
_NEWEST = "appsink drop=true max-buffers=1 sync=false"  # a slow reader gets the newest frame
_ALL = "appsink max-buffers=4 sync=false"  # a slow reader holds up the decoder: no frame is lost


def rtsp(url: str, hardware: Hardware, codec: Codec = "h264", transport: Transport = "tcp") -> str:
    """The newest frames of an RTSP camera.

    Args:
        url: rtsp:// or rtsps://.
        codec: what the camera sends.
        transport: "tcp" arrives whole; "udp" is some milliseconds faster and loses packets.
    Raises:
        InputError: an unknown hardware, codec or transport.
    """
    if transport not in ("tcp", "udp"):
        raise InputError(f"transport: expected tcp or udp, got {transport!r}.")
    source = f"rtspsrc location={_quoted(url)} protocols={transport} latency=100 drop-on-latency=true ! rtp{_codec(codec)}depay"
    return f"{source} ! {_decoded(hardware, codec)} ! {_NEWEST}"


def file(path: str, hardware: Hardware, codec: Codec = "h264") -> str:
    """Every frame of a video file (.mp4, .mov, .m4v, .mkv, .webm, .ts). Raises InputError for any other."""
    suffix = PurePath(path).suffix.lower()
    if suffix not in _DEMUXERS:
        raise InputError(
            f"{path}: expected {', '.join(_DEMUXERS)} for decoding in hardware, got {suffix or 'no suffix'!r}. Leave --decoder out."
        )
    return f"filesrc location={_quoted(path)} ! {_DEMUXERS[suffix]} ! {_decoded(hardware, codec)} ! {_ALL}"


def csi(sensor: int = 0, size: tuple[int, int] = (1280, 720), fps: int = 30) -> str:
    """The newest frames of a camera at a Jetson's CSI port.

    Args:
        sensor: its number, from 0.
        size: (W, H); one of the sensor's modes.
    """
    caps = f"video/x-raw(memory:NVMM),width={size[0]},height={size[1]},framerate={fps}/1"
    return f"nvarguscamerasrc sensor-id={sensor} ! {caps} ! {_DECODERS['jetson'][1]} ! {_BGR} ! {_NEWEST}"


def _decoded(hardware: Hardware, codec: Codec) -> str:
    if hardware not in _DECODERS:
        raise InputError(f"decoder: expected one of {', '.join(_DECODERS)}, got {hardware!r}.")
    decoders, download = _DECODERS[hardware]
    return f"{_codec(codec)}parse ! {decoders[codec]} ! {download} ! {_BGR}"


def _codec(codec: Codec) -> Codec:
    if codec not in ("h264", "h265"):
        raise InputError(f"codec: expected h264 or h265, got {codec!r}.")
    return codec


def _quoted(text: str) -> str:
    """For gst_parse_launch: nothing in a name or URL may end the property or begin an element."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
