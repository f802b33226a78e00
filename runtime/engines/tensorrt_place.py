"""What every TensorRT engine of a process shares on one GPU.

An engine needs scratch memory only while it works. One buffer serves all of them (image tower, text tower, heads), as large as the
largest need, because all of them work on one stream, one after the other; copies go on streams of their own meanwhile.
"""

from __future__ import annotations

import logging
import threading

from edgeclip.errors import EngineError
from edgeclip.runtime import cuda

log = logging.getLogger(__name__)

_places: dict[int, Place] = {}
_lock = threading.Lock()


class Place:
    """One GPU's compute stream and scratch memory. Use both under `lock` only, which orders the engines' work.

    Args:
        device: number of the GPU.
    """

    def __init__(self, device: int) -> None:
        self.device, self.lock = device, threading.RLock()
        self.stream = cuda.Stream(device)
        self.scratch = cuda.Memory(device, 256)
        self.moved = 0  # how often the scratch memory took another place: recorded work holds its address
        self._users = 0

    def enter(self, need: int) -> None:
        """One engine more, with its need of scratch memory in bytes. Raises EngineError where there is no room."""
        with self.lock:
            self._users += 1  # first: an engine that is collected meanwhile must not be the last one
            try:
                if need > self.scratch.size:
                    self._move(need)
            except EngineError:
                self._users -= 1
                raise

    def leave(self) -> None:
        """One engine less; the last one gives the memory back."""
        with self.lock:
            self._users -= 1
            if not self._users:
                try:
                    self._move(256)
                except (
                    EngineError
                ) as error:  # the GPU is lost, or this is a fork: there is nothing to give back
                    log.info("%s", error)

    def _move(self, size: int) -> None:
        with cuda.on(self.device):
            larger = cuda.Memory(self.device, size)
            self.stream.synchronize()  # somebody may still work in the old one
            self.scratch.free()
        self.scratch, self.moved = larger, self.moved + 1


def place_on(device: int) -> Place:
    """The one of this GPU. Raises EngineError where CUDA does not start."""
    with _lock:  # not in a fork of a process that used CUDA: `on` refused it before
        if device not in _places:
            _places[device] = Place(device)
        return _places[device]
