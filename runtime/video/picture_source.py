"""Pictures as frames: a file, a folder, a glob."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeclip.errors import InputError
from edgeclip.runtime.images.decode import decode
from edgeclip.runtime.video.frames import Frame

log = logging.getLogger("edgeclip")


class PictureSource:
    """Pictures in the order given, as if filmed at 30 a second.

    One that cannot be read is told and passed over; only when none can, that is an error.
    """

    live = False
    fps: float | None = 30.0

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self._paths, self._next, self._good = name, list(paths), 0, 0
        self._failure: InputError | None = None

    def read(self) -> Frame | None:
        """The next picture that can be read, upright."""
        while self._next < len(self._paths):
            number, self._next = self._next, self._next + 1
            path = self._paths[number]
            try:
                image = np.asarray(decode(path).image)
            except InputError as error:
                self._failure = error
                if len(self._paths) > 1:
                    log.warning("skipped: %s", error)
                continue
            self._good += 1
            return Frame(image, number, number / 30, time.monotonic(), str(path), picture=True)
        if self._good == 0 and self._failure is not None:
            raise self._failure
        return None

    def skip(self) -> bool:
        """Pass over one picture."""
        self._next += 1
        return self._next <= len(self._paths)

    def close(self) -> None:
        """Nothing is held."""
