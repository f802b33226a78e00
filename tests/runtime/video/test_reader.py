"""The newest frame, what was dropped, and a source that goes away: sources by hand, no race with a clock."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.video.frames import Frame, SourceLost
from edgeclip.runtime.video.reader import EveryFrame, NewestFrame, Patience
from tests.mutants import broken
from tests.runtime.video.clips import HandSource, Opener, until

QUICK = Patience(stall_s=1e9, attempts=3, first_s=0.0, most_s=0.0)


def level(frame: Frame | None) -> int | None:
    """What the test gave."""
    return None if frame is None else int(frame.image[0, 0, 0])


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Whatever a test that failed left behind ends now."""
    yield
    for source in HandSource.made:
        source.items.put(None)
    HandSource.made.clear()
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgeclip-hand")])


def ended(reader: NewestFrame) -> bool:
    """Its thread is no more."""
    thread = reader._lane.thread
    return thread is not None and not thread.is_alive()


def closes(reader: NewestFrame, source: HandSource) -> None:
    """Close it while its thread waits for a frame, as a camera's would."""
    reader._lane.stop.set()
    source.items.put(None)
    reader.close()
    until(lambda: ended(reader))


def test_the_newest_is_handed_over_and_the_others_are_counted() -> None:
    source = HandSource()
    reader = NewestFrame(Opener(source), QUICK)
    source.give(1)
    until(lambda: reader.ready)
    assert level(reader.take()) == 1
    assert reader.take() is None
    assert not reader.ended
    source.give(2, 3, 4, 5)
    until(lambda: reader.dropped == 3)
    frame = reader.take()
    assert frame is not None
    assert (level(frame), frame.number) == (5, 4)  # a gap of three
    assert (reader.dropped, reader.reconnects) == (3, 0)
    assert frame.time_s >= 0
    closes(reader, source)
    assert source.closed
    assert reader.ended


def test_handing_over_the_oldest_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    keeps = broken(NewestFrame._put, "self._frame = replace(", "self._frame = self._frame or replace(")
    monkeypatch.setattr(NewestFrame, "_put", keeps)
    with pytest.raises(AssertionError):
        test_the_newest_is_handed_over_and_the_others_are_counted()


def test_a_source_that_goes_away_is_opened_again(caplog: pytest.LogCaptureFixture) -> None:
    first, second = HandSource(), HandSource()
    opener = Opener(first, InputError("hand: no route"), InputError("hand: no route"), second)
    reader = NewestFrame(opener, QUICK)
    first.give(1)
    until(lambda: reader.ready)
    assert level(reader.take()) == 1
    first.give(SourceLost("hand: gone."))
    second.give(2)
    until(lambda: reader.ready)
    frame = reader.take()
    assert frame is not None
    assert (level(frame), frame.number, reader.reconnects, reader.dropped) == (2, 1, 3, 0)
    assert first.closed
    assert caplog.text.count("Opening it again") == 3
    assert "hand: gone. Opening it again in 0 s (attempt 1 of 3)" in caplog.text
    closes(reader, second)


def test_attempts_end_and_are_counted_anew_after_a_frame() -> None:
    gone = InputError("hand: no route.")
    first, second = HandSource(), HandSource()
    reader = NewestFrame(Opener(first, gone, gone, second, gone, gone, gone), QUICK)
    first.give(None)  # a live source that ends is lost too
    second.give(7)
    until(lambda: reader.ready)
    assert level(reader.take()) == 7
    second.give(SourceLost("hand: gone."))
    until(lambda: reader.ready)
    with pytest.raises(SourceLost, match=r"hand: no route\. Given up after 3 attempts in a row"):
        reader.take()
    assert reader.ended
    assert reader.take() is None  # told once
    assert reader.reconnects == 6
    until(lambda: ended(reader))


def test_waits_grow_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    real = threading.Event.wait

    def wait(event: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread().name.startswith("edgeclip-hand"):
            waits.append(timeout or 0.0)
            return False
        return real(event, timeout)

    monkeypatch.setattr(threading.Event, "wait", wait)
    gone = InputError("hand: no route.")
    source = HandSource()
    reader = NewestFrame(Opener(source, *[gone] * 6), Patience(attempts=6, first_s=0.5, most_s=4.0))
    source.give(None)
    until(lambda: reader.ready)
    assert waits == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    reader.close()


def test_a_thread_that_is_stuck_is_left_behind() -> None:
    now = [0.0]
    stuck, second = HandSource(), HandSource()
    reader = NewestFrame(Opener(stuck, second), Patience(stall_s=5, attempts=2), clock=lambda: now[0])
    now[0] = 4.0
    assert reader.take() is None
    assert reader.reconnects == 0
    now[0] = 5.5
    assert reader.take() is None
    assert reader.reconnects == 1
    second.give(9)
    until(lambda: reader.ready)
    stuck.give(1)  # the driver lets go at last: too late
    until(lambda: stuck.closed)
    assert level(reader.take()) == 9
    assert reader.dropped == 0
    closes(reader, second)


def test_a_stuck_source_is_given_up_in_the_end() -> None:
    now = [0.0]
    sources = [HandSource(), HandSource()]
    reader = NewestFrame(Opener(*sources), Patience(stall_s=5, attempts=1), clock=lambda: now[0])
    for now[0] in (6.0, 12.0):
        until(lambda: reader._lane.busy_since is not None)
        if now[0] < 12:
            assert reader.take() is None
            until(lambda: reader._lane.busy_since == now[0])
    with pytest.raises(SourceLost, match="hand: no frame for 6 s"):
        reader.take()
    for source in sources:
        source.items.put(None)
    until(lambda: ended(reader))


def test_a_mistake_of_ours_is_no_lost_source() -> None:
    source = HandSource()
    reader = NewestFrame(Opener(source), QUICK)
    source.give(ZeroDivisionError("ours"))
    until(lambda: reader.ready)
    with pytest.raises(ZeroDivisionError):
        reader.take()
    until(lambda: source.closed)


class Recording(HandSource):
    """Three frames, a quarter of a second apart by their own clock."""

    live = False

    def read(self) -> Frame | None:
        """The next of the three."""
        self._number += 1
        frame = HandSource.read(self) if self._number <= 3 else None
        return frame


def test_a_recording_ends_and_is_not_opened_again() -> None:
    source = Recording()
    opener = Opener(source)
    reader = NewestFrame(opener, QUICK)
    source.items.put(5)
    until(lambda: reader.ready)
    assert level(reader.take()) == 5
    source.items.put(None)
    until(lambda: reader.ended)
    assert opener.opened == 1
    assert reader.reconnects == 0
    assert reader.take() is None
    until(lambda: ended(reader))


def test_every_frame_reads_when_asked_and_ends() -> None:
    source = HandSource()
    reader = EveryFrame(source)
    for item in (1, 2, None):
        source.items.put(item)
    assert [level(reader.take()) for _ in range(3)] == [1, 2, None]
    assert reader.ended
    reader.close()
    assert source.closed


def test_a_reader_that_cannot_open_says_so_at_once() -> None:
    with pytest.raises(InputError, match="no camera"):
        NewestFrame(Opener(InputError("0: no camera")), QUICK)


def test_memory_is_not_held_while_the_next_frame_is_awaited() -> None:
    import weakref

    source = HandSource()
    reader = NewestFrame(Opener(source), QUICK)
    source.give(1)
    until(lambda: reader.ready)
    frame = reader.take()
    assert frame is not None
    held = weakref.ref(frame.image)
    del frame
    until(lambda: held() is None)  # neither the reader nor its thread keeps it
    closes(reader, source)


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("kind", ["newest", "every"])
def test_a_forked_child_is_told_and_its_parent_goes_on(kind: str) -> None:
    source = HandSource()
    reader = NewestFrame(Opener(source), QUICK) if kind == "newest" else EveryFrame(source)
    with reader.news if isinstance(reader, NewestFrame) else reader._lock:  # as if a thread were just at it
        child = os.fork()
        if child == 0:
            try:
                reader.take()
            except InputError as error:
                os._exit(0 if "opened before a fork" in str(error) else 3)
            except BaseException:
                os._exit(4)
            os._exit(5)
    deadline = time.monotonic() + 20
    while (gone := os.waitpid(child, os.WNOHANG))[0] == 0:
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(gone[1]) == 0
    if isinstance(reader, EveryFrame):
        source.items.put(3)
        assert level(reader.take()) == 3
        return
    source.give(3)
    until(lambda: reader.ready)
    assert level(reader.take()) == 3
    closes(reader, source)


def test_a_source_is_not_closed_while_it_is_read() -> None:
    source = HandSource()
    reader = EveryFrame(source)
    reading = threading.Thread(target=reader.take)
    reading.start()
    until(lambda: reader._lock.locked())
    closing = threading.Thread(target=reader.close)
    closing.start()
    assert not source.closed
    source.items.put(1)
    for thread in (reading, closing):
        thread.join(timeout=20)
    assert source.closed
    assert reader.ended
