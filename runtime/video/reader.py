"""Who takes frames from a source: every one of a recording, the newest one of a camera."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from edgeclip.errors import InputError
from edgeclip.runtime import fork
from edgeclip.runtime.video.frames import Frame, FrameSource, SourceLost

log = logging.getLogger("edgeclip")
_END = "the stream ended."


@dataclass(frozen=True)
class Patience:
    """How long a live source may be silent, and how often it is opened again."""

    stall_s: float = 15.0  # one open or read may take so long; then it is left behind
    attempts: int = 20  # in a row without a frame; 0: never again
    first_s: float = 0.5  # before the first attempt; twice as long before each further one
    most_s: float = 30.0


class Reader(Protocol):
    """Hands over frames, by its own rule of which."""

    name: str
    dropped: int  # frames that came and were replaced by newer ones
    reconnects: int
    fps: float | None

    def take(self) -> Frame | None:
        """A frame not handed over before, or None: none yet, or `ended`. Raises InputError when the source is lost."""

    @property
    def ended(self) -> bool:
        """Nothing comes any more."""

    @property
    def ready(self) -> bool:
        """Whether `take` has something to give or to raise."""

    def close(self) -> None:
        """Close the source."""


class EveryFrame:
    """All frames, in order, read when they are asked for."""

    dropped = reconnects = 0

    def __init__(self, source: FrameSource) -> None:
        self.name, self.fps, self._source, self._ended = source.name, source.fps, source, False
        self._lock = threading.Lock()  # a decoder that is closed while it reads takes the process with it
        self._failure: InputError | None = None
        fork.register(self)

    def take(self) -> Frame | None:
        """The next frame."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        with self._lock:
            frame = None if self._ended else self._source.read()
            self._ended = frame is None
        return frame

    @property
    def ended(self) -> bool:
        """The source has no more, or was closed."""
        return self._ended and self._failure is None

    ready = True

    def close(self) -> None:
        """Close the source, after the frame that is just being read."""
        with self._lock:
            self._ended = True
            self._source.close()

    def after_fork(self) -> None:
        """In a forked child: the decoder's threads stayed in the parent."""
        fork.abandon(self._source)
        self._lock, self._ended, self._failure = threading.Lock(), True, _forked(self.name)


def _forked(name: str) -> InputError:
    return InputError(f"{name}: this source was opened before a fork. Open it in the child.")


class _Lane:
    """One thread at work on the source. One that is stuck in a driver is left behind, and can touch nothing any more."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.busy_since: float | None = None  # None: waiting to open again
        self.thread: threading.Thread | None = None


class NewestFrame:
    """Reads without pause in a thread, keeps the newest frame only, and opens a lost source again.

    Args:
        open_source: opens it; called at once here, later in the thread.
        news: notified at each frame; several readers may share one.
    Raises:
        InputError: it cannot be opened at all.
    """

    def __init__(
        self,
        open_source: Callable[[], FrameSource],
        patience: Patience | None = None,
        news: threading.Condition | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open, self._patience, self._clock = open_source, patience or Patience(), clock
        self.news = news or threading.Condition()
        self.dropped = self.reconnects = self._number = self._attempts = 0
        self._frame: Frame | None = None
        self._failure: BaseException | None = None
        self._closed = self._finished = False
        self._began = clock()
        source = open_source()
        self.name, self.fps = source.name, source.fps
        self._lane = self._start(source)
        fork.register(self)

    def take(self) -> Frame | None:
        """The newest frame that was not handed over before; None: none yet, or closed."""
        with self.news:
            self._watch()
            frame, self._frame = self._frame, None
            if frame is None and self._failure is not None and not self._closed:
                self._closed = True
                raise self._failure
            return frame

    @property
    def ended(self) -> bool:
        """A recording is over; or the source was closed, or lost for good and that was told."""
        return self._closed or (self._finished and self._frame is None)

    @property
    def ready(self) -> bool:
        """Whether `take` has something to give or to raise."""
        return self._frame is not None or self._failure is not None or self.ended

    def close(self) -> None:
        """Stop the thread, which closes the source. One stuck in a driver ends when the driver lets it go."""
        with self.news:
            self._closed, self._frame = True, None
            lane = self._lane
            lane.stop.set()
            self.news.notify_all()
        if lane.thread is not None and lane.thread is not threading.current_thread():
            lane.thread.join(timeout=2.0)

    def after_fork(self) -> None:
        """In a forked child: the thread and the device stayed in the parent."""
        fork.abandon(self._lane)
        self.news, self._lane, self._frame = threading.Condition(), _Lane(), None
        self._failure = InputError(
            f"{self.name}: this source was opened before a fork. Open it in the child."
        )

    def _start(self, source: FrameSource | None) -> _Lane:
        lane = _Lane()
        lane.busy_since = self._clock()
        lane.thread = threading.Thread(
            target=self._work, args=(lane, source), name=f"edgeclip-{self.name}", daemon=True
        )
        lane.thread.start()
        return lane

    def _work(self, lane: _Lane, source: FrameSource | None) -> None:
        try:
            while not lane.stop.is_set():
                lane.busy_since = self._clock()
                frame = None  # the last one's memory is free as soon as the other side is done
                reason = _END
                try:
                    if source is None:
                        source = self._open()
                    frame = source.read()
                except InputError as error:
                    reason = str(error)
                live = source is None or source.live
                if frame is not None:
                    self._put(lane, frame if live else self._paced(lane, frame))
                    continue
                lane.busy_since = None
                if not live and reason == _END:
                    return self._finish(lane)
                if source is not None:
                    source.close()
                    source = None
                if (delay := self._again(lane, reason)) is None:
                    return
                lane.stop.wait(delay)
        except BaseException as error:
            self._fail(lane, error)
        finally:
            if source is not None:
                source.close()

    def _put(self, lane: _Lane, frame: Frame) -> None:
        with self.news:
            if lane is not self._lane or self._closed:
                return
            self.dropped += self._frame is not None
            at = frame.captured_s - self._began  # over reconnections too
            self._frame = replace(frame, number=self._number, time_s=at)
            self._number, self._attempts = self._number + 1, 0
            self.news.notify_all()

    def _again(self, lane: _Lane, reason: str) -> float | None:
        """Seconds until the source is to be opened again; None: not any more."""
        with self.news:
            if lane is not self._lane or self._closed:
                return None
            patience = self._patience
            if self._attempts >= patience.attempts:
                tried = f" Given up after {self._attempts} attempts in a row." if self._attempts else ""
                self._fail(lane, SourceLost(reason + tried))
                return None
            delay = min(patience.most_s, patience.first_s * float(2**self._attempts))
            self._attempts += 1
            self.reconnects += 1
            log.warning(
                "%s Opening it again in %g s (attempt %d of %d).",
                reason,
                delay,
                self._attempts,
                patience.attempts,
            )
            return delay

    def _paced(self, lane: _Lane, frame: Frame) -> Frame:
        """A recording's frame at the time when a camera would have given it."""
        lane.busy_since = None
        lane.stop.wait(max(0.0, self._began + frame.time_s - self._clock()))
        return replace(frame, captured_s=self._clock())

    def _finish(self, lane: _Lane) -> None:
        with self.news:
            self._finished = lane is self._lane
            self.news.notify_all()

    def _fail(self, lane: _Lane, error: BaseException) -> None:
        with self.news:
            if lane is self._lane:
                self._failure = error
                self.news.notify_all()

    def _watch(self) -> None:
        """Leave a thread behind that has been stuck for too long, and start another."""
        lane, since = self._lane, self._lane.busy_since
        if self.ended or self._failure is not None or since is None:
            return
        stuck = self._clock() - since
        if stuck <= self._patience.stall_s:
            return
        lane.stop.set()
        if self._again(lane, f"{self.name}: no frame for {stuck:.0f} s.") is not None:
            self._lane = self._start(None)
