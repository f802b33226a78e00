"""Clips made by the tests: cells of one colour that move by whole cells, as the planted detector sees them. And a source by hand."""

from __future__ import annotations

import contextlib
import http.server
import io
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.runtime.video.frames import Frame
from tests.runtime.detectors import scene

SIDE, CELL, FPS = 128, 16, 25.0
Cells = dict[tuple[int, int], tuple[int, int, int]]
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def write_clip(path: Path, frames: Sequence[NDArray[np.uint8]], fps: float = FPS) -> Path:
    """RGB frames as MPEG-4, by OpenCV."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame[..., ::-1].copy())
    writer.release()
    return path


def cells_of(number: int) -> Cells:
    """A red cell that goes right along row 2 and a green one that goes left along row 3; they pass each other in the middle."""
    step = min(number // 3, 7)
    return {(2, step): RED, (3, 7 - step): GREEN}


def crossing(count: int = 24) -> list[NDArray[np.uint8]]:
    """Frames of 128 x 128 pixels, a cell is 16."""
    return [scene(cells_of(i), SIDE, SIDE, CELL) for i in range(count)]


def read_all(path: Path) -> list[NDArray[np.uint8]]:
    """Every frame of a video, RGB, by OpenCV alone."""
    capture, found = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        found.append(frame[1][..., ::-1])
    return found


def turned(path: Path, degrees: int) -> Path:
    """The same MP4 with the track's display matrix turned clockwise by 90, 180 or 270: what a phone writes."""
    one = 1 << 16
    rows = {
        90: (0, one, 0, -one & 0xFFFFFFFF, 0, 0),
        180: (-one & 0xFFFFFFFF, 0, 0, 0, -one & 0xFFFFFFFF, 0),
        270: (0, -one & 0xFFFFFFFF, 0, one, 0, 0),
    }[degrees]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version and flags, times, ids, layer, group, volume
    data[start : start + 24] = b"".join(value.to_bytes(4, "big") for value in rows)
    found = path.with_name(f"{path.stem}-{degrees}{path.suffix}")
    found.write_bytes(data)
    return found


def transport_stream(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    """MPEG-TS, as network cameras send it."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="mpegts") as container:
        track = container.add_stream("libx264", rate=25)
        track.height, track.width, track.pix_fmt = *frames[0].shape[:2], "yuv420p"
        track.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "10"}
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(track.encode())
    return memory.getvalue()


@contextlib.contextmanager
def served(pages: dict[str, tuple[bytes, bool]]) -> Iterator[str]:
    """The address of a server on this machine. A page is its content and whether its length is told, as a recording's is."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content, told = pages[self.path]
            self.send_response(200)
            if told:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the other side has seen enough
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class HandSource:
    """A live source that gives what a test hands to it.

    `asked`: released each time a frame is asked for, so a test knows when everything so far was taken.
    """

    live, fps = True, 30.0
    made: ClassVar[list[HandSource]] = []

    def __init__(self, name: str = "hand") -> None:
        self.made.append(self)
        self.name, self.closed = name, False
        self.items: queue.Queue[int | Exception | None] = queue.Queue()
        self.asked = threading.Semaphore(0)
        self._number = 0

    def give(self, *items: int | Exception | None) -> None:
        """Grey levels of frames, None for the end, or an error to raise; returns once all were taken."""
        for item in items:
            self.items.put(item)
        for _ in items:
            assert self.asked.acquire(timeout=20), "the reader does not ask"

    def read(self) -> Frame | None:
        """The next item."""
        item = self.items.get(timeout=20)
        self.asked.release()  # taken; the frame is put before the next item is taken
        if isinstance(item, Exception):
            raise item
        if item is None:
            return None
        self._number += 1
        image = np.full((8, 8, 3), item, np.uint8)
        return Frame(image, self._number - 1, 0.0, time.monotonic(), self.name)

    def skip(self) -> bool:
        """Pass over one."""
        return self.read() is not None

    def close(self) -> None:
        """Remember."""
        self.closed = True


class Opener:
    """Opens the sources of a list, one after the other; an error in it is raised."""

    def __init__(self, *sources: HandSource | InputError) -> None:
        self.sources, self.opened = list(sources), 0

    def __call__(self, *_: object) -> HandSource:
        """Open the next one."""
        found = self.sources[self.opened]
        self.opened += 1
        if isinstance(found, InputError):
            raise found
        return found


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for another thread; however busy the machine is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)
