"""Sources in, detections out, while prompts change.

with stream(model, "rtsp://camera/1", ["a person"], track=True) as session:
    for result in session:
        print(result.frame.number, result.detections.names, result.stats.p50_ms)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeclip.errors import EdgeClipError, InputError
from edgeclip.runtime.detect.examples import Example
from edgeclip.runtime.detections import Detections
from edgeclip.runtime.video.frames import Frame, FrameSource
from edgeclip.runtime.video.reader import EveryFrame, NewestFrame, Patience, Reader, log
from edgeclip.runtime.video.sources import open_source
from edgeclip.runtime.video.tracking import ByteTrack, Tracker, TrackSettings

if TYPE_CHECKING:
    from edgeclip.runtime.model import Model

WINDOW = 256  # results that the percentiles look back on


@dataclass(frozen=True)
class Prompts:
    """What is looked for, ready for each frame: arguments of `Model.detect`."""

    labels: Any  # a LabelPack; a text with nested prompts; None: the baked labels
    examples: Sequence[Example]  # with nested prompts only: a pack holds what examples come to
    options: dict[str, Any]  # threshold, nms_iou, class_agnostic, max_detections, tile[, templates]


@dataclass(frozen=True)
class Stats:
    """Of one source so far; times over its last 256 results."""

    frames: int  # results so far
    fps: float  # results a second
    p50_ms: float  # from the frame's arrival to its result; a frame that waited for its turn counts that
    p90_ms: float
    dropped: int  # frames replaced by newer ones before anybody looked at them
    reconnects: int


@dataclass(frozen=True, eq=False)
class Result:
    """What was seen in one frame."""

    frame: Frame
    detections: Detections
    stats: Stats
    source: int = 0  # which of several


def stream(
    model: Model,
    sources: str | Sequence[str],
    prompts: Any = None,
    *,
    examples: Sequence[Example] = (),
    track: bool | TrackSettings = False,
    newest: bool | None = None,
    patience: Patience | None = None,
    open_with: Callable[[str], FrameSource] = open_source,
    **options: Any,
) -> Session:
    """Open sources and detect in their frames, one at a time.

    Args:
        sources: one or several, as for `open_source`; several take turns.
        prompts: `labels` of `Model.detect`; None: the baked labels. `Session.set_prompts` changes them.
        examples: as for `Model.detect`.
        track: give ids that stay from frame to frame.
        newest: skip frames that came while the last one was worked on; None: of live sources, and no frame of a recording.
        patience: with live sources that fall silent.
        open_with: opens a source; for other settings, `functools.partial(open_source, transport="udp")`.
        options: of `Model.detect`: threshold, nms_iou, class_agnostic, max_detections, templates, tile.
    Raises:
        InputError: a source or prompt that cannot be used. MissingExtraError: tracking without `trackers`.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    if not names:
        raise InputError("sources: expected one or more, got none.")
    asked = prepare(model, prompts, examples, options)  # before a camera is opened
    news, readers = threading.Condition(), list[Reader]()
    try:
        for name in names:
            readers.append(_reader(partial(open_with, name), newest, patience, news))
        settings = track if isinstance(track, TrackSettings) else None
        trackers = [ByteTrack(settings, reader.fps or 30.0) if track else None for reader in readers]
    except BaseException:
        for reader in readers:
            reader.close()
        raise
    return Session(model, readers, asked, trackers, news, options)


def prepare(model: Model, prompts: Any, examples: Sequence[Example], options: dict[str, Any]) -> Prompts:
    """Look at texts and examples once, so that no frame waits for them. Raises InputError for what cannot be asked."""
    nested = isinstance(prompts, str) and prompts.lstrip().startswith("[")
    if nested or (prompts is None and not examples):
        found = Prompts(prompts, examples, options)
    else:
        others = {name: value for name, value in options.items() if name != "templates"}
        pack = model.make_prompts(prompts, examples=examples, templates=options.get("templates"))
        found = Prompts(pack, (), others)
    # without a picture: checks the options, and embeds the texts of nested prompts
    list(model.detect_each([], found.labels, examples=found.examples, **found.options))
    return found


def _reader(
    opens: Callable[[], FrameSource],
    newest: bool | None,
    patience: Patience | None,
    news: threading.Condition,
) -> Reader:
    first: list[FrameSource] = [opens()]
    if not (first[0].live if newest is None else newest):
        return EveryFrame(first[0])
    return NewestFrame(lambda: first.pop() if first else opens(), patience, news)


class _Feed:
    """One source's reader, tracker and times."""

    def __init__(self, reader: Reader, tracker: Tracker | None) -> None:
        self.reader, self.tracker = reader, tracker
        self.frames, self.latencies, self.ends = 0, deque[float](maxlen=WINDOW), deque[float](maxlen=WINDOW)

    def stats(self, frame: Frame, now: float) -> Stats:
        """After one more result."""
        self.frames += 1
        self.latencies.append(now - frame.captured_s)
        self.ends.append(now)
        span = self.ends[-1] - self.ends[0]
        p50, p90 = np.percentile(self.latencies, (50, 90)) * 1000
        fps = (len(self.ends) - 1) / span if span > 0 else 0.0
        return Stats(self.frames, fps, float(p50), float(p90), self.reader.dropped, self.reader.reconnects)


class Session(Iterator[Result]):
    """A running stream. Iterate in one thread; `set_prompts` and `close` may be called from others.

    Args:
        readers: one a source.
        trackers: one a source, or None.
        news: what the readers notify.
    """

    def __init__(
        self,
        model: Model,
        readers: Sequence[Reader],
        prompts: Prompts,
        trackers: Sequence[Tracker | None],
        news: threading.Condition,
        options: dict[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._prompts, self._news, self._clock = model, prompts, news, clock
        self._options = options  # as they were given
        self._feeds = [_Feed(*pair) for pair in zip(readers, trackers, strict=True)]
        self._turn, self._closed = 0, False

    def fps(self, source: int = 0) -> float | None:
        """Nominal frames a second of a source; None: unknown."""
        return self._feeds[source].reader.fps

    def set_prompts(self, prompts: Any = None, *, examples: Sequence[Example] = (), **options: Any) -> None:
        """Look for something else from the next frame on.

        The texts are embedded here, in the caller's thread, while frames go on with the old prompts. Options that are not given stay, but for thresholds by label.

        Raises:
            InputError: a prompt that cannot be used; the old ones stay.
        """
        merged = {**self._options, **options}
        if "threshold" not in options and isinstance(merged.get("threshold"), Mapping):
            del merged["threshold"]  # it names labels of before
        found = prepare(self._model, prompts, examples, merged)
        self._options = merged
        self._prompts = found  # one reference: a frame sees the old or the new, whole

    def __next__(self) -> Result:
        """The next result. Raises InputError when the last of the sources is lost."""
        number, frame = self._next_frame()
        feed, asked = self._feeds[number], self._prompts
        found = self._model.detect(frame.image, asked.labels, examples=asked.examples, **asked.options)
        if feed.tracker is not None:
            found = feed.tracker.update(found, frame.time_s)
        return Result(frame, found, feed.stats(frame, self._clock()), number)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sources; an iteration that waits for a frame ends."""
        self._closed = True
        for feed in self._feeds:
            feed.reader.close()
        with self._news:
            self._news.notify_all()

    def _next_frame(self) -> tuple[int, Frame]:
        """A frame of the next source in turn that has one; waits for it."""
        count = len(self._feeds)
        while not self._closed:
            for step in range(count):
                number = (self._turn + step) % count
                if (frame := self._take(number)) is not None:
                    self._turn = number + 1
                    return number, frame
            if all(feed.reader.ended for feed in self._feeds):
                break
            with self._news:  # a second, for a reader that watches over its thread when it is asked
                self._news.wait_for(lambda: self._closed or any(self._waiting()), timeout=1.0)
        raise StopIteration

    def _take(self, number: int) -> Frame | None:
        try:
            return self._feeds[number].reader.take()
        except EdgeClipError as error:
            self._feeds[number].reader.close()
            if all(feed.reader.ended for feed in self._feeds):
                raise
            log.warning("%s The other sources go on.", error)
            return None

    def _waiting(self) -> Iterator[bool]:
        return (feed.reader.ready for feed in self._feeds if not feed.reader.ended)
