"""A share that only grows; Ctrl-C that waits for the work to end."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from edgeclip.runtime.tensorrt.progress import Progress, interruptible


def test_phases_inside_each_other_fill_their_parents_step() -> None:
    said: list[tuple[str, float]] = []
    progress = Progress(lambda phase, share: said.append((phase, round(share, 3))))
    progress.start("all", None, 4)
    progress.start("clone", "all", 2)
    assert progress.step("clone")
    assert progress.share == 1 / 8
    progress.step("clone")
    progress.finish("clone")
    progress.step("all")
    assert progress.share == 1 / 4  # not counted twice
    progress.start("time", "all", 2)
    progress.start("kernels", "time", 2)
    progress.step("kernels")
    assert progress.share == 1 / 4 + 1 / 16
    progress.start("again", None, 10)  # TensorRT begins some phases twice, or beside the others
    progress.step("again")
    assert progress.share == 1 / 4 + 1 / 16
    assert [share for _, share in said] == sorted(share for _, share in said)
    assert [phase for phase, _ in said] == [
        "all",
        "clone",
        "clone",
        "clone",
        "time",
        "kernels",
        "kernels",
        "again",
    ]


def test_thousands_of_steps_are_told_rarely() -> None:
    said: list[float] = []
    progress = Progress(lambda phase, share: said.append(share))
    progress.start("all", None, 10_000)
    for _ in range(20_000):  # more than were promised
        progress.step("all")
    assert 190 <= len(said) <= 202
    assert progress.share == 1.0


def test_a_phase_that_is_its_own_parent_ends() -> None:
    progress = Progress(lambda phase, share: None)
    progress.start("a", "b", 2)
    progress.start("b", "a", 2)
    assert progress.step("a")
    assert progress.share <= 1


def test_the_stop_is_heard_at_the_next_step() -> None:
    progress = Progress(lambda phase, share: None)
    progress.start("a", None, 2)
    assert progress.step("a")
    progress.stop.set()
    assert not progress.step("a")


def test_work_gives_its_result_or_raises_its_error() -> None:
    assert interruptible(lambda: 7, threading.Event()) == 7
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0, threading.Event())


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises, also in a job in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize(
    "turn", range(3)
)  # a thread that is joined is taken for dead at some of these moments
def test_ctrl_c_waits_for_the_work(turn: int) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals go to the main thread")
    stop, ended = threading.Event(), []

    def work() -> None:
        time.sleep(0.005 * turn)
        os.kill(os.getpid(), signal.SIGINT)
        for i in itertools.count():
            if stop.wait(0.01) or i > 500:
                break
        time.sleep(0.05)
        ended.append(stop.is_set())

    with pytest.raises(KeyboardInterrupt):
        interruptible(work, stop)
    assert ended == [True]
