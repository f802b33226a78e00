"""How far a build is, and how to stop it: TensorRT's progress monitor as one share that only grows."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Tell = Callable[[str, float], None]  # (phase in TensorRT's words, share 0-1)
T = TypeVar("T")
_STEP = 0.005  # a build takes some thousand steps: told 200 times at most, and at each new phase


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Progress:
    """What TensorRT's phases, one inside another, say together. Called from any of its threads."""

    def __init__(self, tell: Tell) -> None:
        self.share = 0.0
        self.stop = threading.Event()
        self.error: BaseException | None = None  # that `tell` raised: ends the build, raised after it
        self._tell, self._told = tell, -1.0
        self._phases: dict[str, _Phase] = {}
        self._guard = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, as part of a step of another."""
        with self._guard:
            self._phases[name] = _Phase(parent, max(1, steps))
            self._say(name, new=True)

    def step(self, name: str) -> bool:
        """A step is done. False asks TensorRT to give up."""
        with self._guard:
            if (phase := self._phases.get(name)) is not None:
                phase.done = min(phase.done + 1, phase.steps)
                self._say(name)
        return not self.stop.is_set()

    def finish(self, name: str) -> None:
        """A phase is over, all its steps done or not."""
        with self._guard:
            self._phases.pop(name, None)

    def end(self) -> None:
        """All is done: TensorRT's own phases end at five sixths."""
        self._tell("done", 1.0)

    def _say(self, name: str, new: bool = False) -> None:
        self.share = max(self.share, min(1.0, self._of_all(name)))
        if self.error is None and (new or self.share >= self._told + _STEP):
            self._told = self.share
            try:
                self._tell(name, self.share)
            except BaseException as error:  # must not pass through TensorRT's C++
                self.error = error
                self.stop.set()

    def _of_all(self, name: str) -> float:
        """The share of everything that is done once this phase is where it is."""
        part, seen = 0.0, set[str]()
        phase = self._phases.get(name)
        while phase is not None and name not in seen:
            seen.add(name)
            part = min(1.0, (phase.done + part) / phase.steps)
            name = phase.parent or ""
            phase = self._phases.get(name)
        return part


def monitor_of(trt: Any, progress: Progress) -> Any:
    """An IProgressMonitor of `tensorrt` or `tensorrt_rtx`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # of a module that is imported late
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def interruptible(work: Callable[[], T], stop: threading.Event) -> T:
    """Do `work` in a thread of its own, so that Ctrl-C is heard meanwhile: it sets `stop`, waits for the work to end and is raised.

    Python hands a signal to the main thread only between two instructions, and a build is one instruction of minutes. A second
    Ctrl-C does not wait.
    """
    done: list[T] = []
    failed: list[BaseException] = []
    # `go`: nothing begins before Ctrl-C is heard. `over`, not `Thread.join`: CPython 3.11 takes a thread for dead once a signal
    # breaks off a join of it.
    go, over = threading.Event(), threading.Event()

    def run() -> None:
        go.wait()
        try:
            if not stop.is_set():
                done.append(work())
        except BaseException as error:
            # Its traceback would keep builder and network, gigabytes, while the next graph is tried.
            traceback.clear_frames(error.__traceback__)
            failed.append(error)
        finally:
            over.set()

    threading.Thread(target=run, name="edgeclip-build", daemon=True).start()
    try:
        go.set()
        while not over.wait(0.1):
            pass
    except KeyboardInterrupt:
        stop.set()
        go.set()
        over.wait()
        raise
    if failed:
        raise failed[0]
    return done[0]
