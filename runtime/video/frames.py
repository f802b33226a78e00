"""One picture of a stream, and the memory that it lies in."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError

Image = NDArray[np.uint8]  # (H, W, 3) RGB


class SourceLost(InputError):
    """A source that was open gives no more frames. A reader may open it again."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a source."""

    image: Image
    number: int  # in its source, from 0; a gap: frames that were passed over
    time_s: float  # a recording: by its own clock; a live source: since it was opened
    captured_s: float  # when it arrived here, by time.monotonic()
    name: str  # of the source, without passwords; of a picture: its path
    picture: bool = False  # a picture by itself, and none of a video


class FrameSource(Protocol):
    """Frames in order. Used by one thread at a time."""

    name: str
    live: bool  # frames come when they come: whoever is slow gets the newest one, not the next one
    fps: float | None  # nominal; None: unknown

    def read(self) -> Frame | None:
        """The next frame; None at the end. Raises SourceLost when it broke off."""

    def skip(self) -> bool:
        """Pass over the next frame, as cheaply as can be; False at the end."""

    def close(self) -> None:
        """Free the device or connection. Closing twice is fine."""


class Buffers:
    """Memory for frames, used again once nobody holds the frame or any view of it.

    A frame of 1920 x 1080 is 6 MB: memory fresh from the system for each costs 1,500 page faults.
    """

    def __init__(self, most: int = 3) -> None:
        self._free: deque[bytearray] = deque(maxlen=most)  # one filled, one waiting, one worked on

    def take(self, shape: tuple[int, ...]) -> Image:
        """An array of this shape with any content."""
        size, block = prod(shape), None
        while block is None:
            try:
                block = self._free.pop()
            except IndexError:
                block = bytearray(size)
            if len(block) != size:  # the source changed its size
                block = None
        # Every view of it, and views of those, hold `flat`: numpy names the first array over foreign memory as their base.
        flat = np.frombuffer(block, np.uint8)
        weakref.finalize(flat, self._free.append, block).atexit = False
        return flat.reshape(shape)


class Every:
    """A source of which only each n-th frame is decoded."""

    def __init__(self, source: FrameSource, n: int) -> None:
        if n < 1:
            raise InputError(f"every: expected 1 or more, got {n}.")
        self._source, self._n, self._first = source, n, True
        self.name, self.live = source.name, source.live
        self.fps = source.fps / n if source.fps else None

    def read(self) -> Frame | None:
        """The next frame that counts."""
        if not self._first:
            for _ in range(self._n - 1):
                if not self._source.skip():
                    return None
        self._first = False
        return self._source.read()

    def skip(self) -> bool:
        """Pass over n frames."""
        return all(self._source.skip() for _ in range(self._n))

    def close(self) -> None:
        """Close the source."""
        self._source.close()
