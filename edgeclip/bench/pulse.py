"""The machine's pulse: a fixed piece of work between queries, and how long the program had to wait for a core.

Of 37 launches of one call on a machine that others used as well, p50 differed by 22 %; divided by the pulse around each query, by 4 %. On
a machine left alone 9 % became 3 %. Tried and worse: copies of 4 MB, gathering from memory, sorting, exp, decoding a JPEG, a loop of Python.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip.bench.report import Pulse

PERIOD_S = 0.25
MOST_SHARE = 1 / 200  # of a run that pulses may take: they come less often where they cost more
AROUND = 2  # pulses to each side whose median a piece of work is: one alone is off by some 10 %
_PRODUCTS = 24  # 64 x 64 is the largest product that OpenBLAS leaves to one thread

Waits = Callable[[], tuple[int, int]]
Work = Callable[[], float]


class Pulses:
    """Feels the pulse between queries; see `Between`.

    A pulse is the geometric mean of two durations of CPU time, a SHA-256 of 256 KiB and products of small matrices: clocks
    and caches. It is then stretched as the program's threads were until the next pulse: time running and waiting for a
    core, by time running. What this program's own threads waited for each other does not count: never more than other programs ran.
    """

    def __init__(
        self,
        clock: Callable[[], int] = time.perf_counter_ns,
        work: Work | None = None,
        waits: Waits | None = None,
        others: Callable[[], int | None] | None = None,
    ) -> None:
        self._clock, self._work, self._waits = clock, work or Pieces(), waits or thread_times
        self._others = others or others_ns
        self._begun = self._due = 0
        self._cost: float = math.inf
        self._at: list[int] = []
        self._ns: list[float] = []
        self._times: list[tuple[int, int]] = []  # running, waiting: after each pulse
        self._others_at: int | None = None

    def begin(self) -> None:
        """Forget what was, warm the work up, and take the first pulse."""
        for _ in range(3):
            self._work()
        self._at, self._ns, self._times, self._cost = [], [], [], math.inf
        self._others_at, self._begun = self._others(), self._clock()
        self._take(self._begun)

    def tick(self) -> None:
        """Take a pulse if one is due."""
        now = self._clock()
        if now >= self._due:
            self._take(now)

    def pulse(self) -> Pulse | None:
        """All pulses since `begin`; None before it."""
        if not self._at:
            return None
        work = smoothed(np.asarray(self._ns))
        times = np.diff([*self._times, self._waits()], axis=0).astype(np.float64)
        run, wait = np.maximum(times, 0).T  # a thread that ended takes its times along
        others = self._others()
        if others is not None and self._others_at is not None:
            wait *= min(1.0, max(0, others - self._others_at) / max(wait.sum(), 1.0))
        us = work * (1 + wait / np.maximum(run, 1.0)) / 1e3
        at_ms = [round((at - self._begun) / 1e6) for at in self._at]
        return Pulse(starts=(0,), at_ms=tuple(at_ms), us=tuple(us.round(3).tolist()))

    def _take(self, now: int) -> None:
        self._at.append(now)
        self._ns.append(self._work())
        self._times.append(self._waits())
        self._cost = min(self._cost, self._clock() - now)  # the least: others may have had the core meanwhile
        self._due = now + int(max(PERIOD_S * 1e9, self._cost / MOST_SHARE))


class Pieces:
    """The fixed work. Nothing of it is large enough to be spread over threads, or to leave the second cache."""

    def __init__(self) -> None:
        self._block = bytes(256 << 10)
        self._a = np.ones((64, 64), np.float32)
        self._out = np.empty_like(self._a)
        # CPU time leaves out what others took meanwhile; where its clock ticks coarsely, as on Windows, time must do
        fine = time.get_clock_info("thread_time").resolution < 1e-6
        self._clock = time.thread_time_ns if fine else time.perf_counter_ns

    def __call__(self) -> float:
        """ns, the geometric mean of both parts. Each is done once before: a query that reads 50 MB leaves the caches cold, which made pulses
        longer by 46 % (so 13 %), and would have divided out a part of what that query costs.
        """
        return math.sqrt(self._second(self._hash) * self._second(self._multiply))

    def _second(self, part: Callable[[], None]) -> int:
        part()
        start = self._clock()
        part()
        return max(self._clock() - start, 1)

    def _hash(self) -> None:
        hashlib.sha256(self._block).digest()

    def _multiply(self) -> None:
        for _ in range(_PRODUCTS):
            np.matmul(self._a, self._a, out=self._out)


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) the median of each value and AROUND neighbours to each side; the ends are repeated."""
    padded = np.pad(values, AROUND, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1)
    return np.asarray(np.median(windows, axis=1))


def thread_times(tasks: Path = Path("/proc/self/task")) -> tuple[int, int]:
    """ns that all threads of this process have run and have waited for a core so far; (0, 0) where Linux does not tell.

    Source: Documentation/scheduler/sched-stats.rst of Linux, "/proc/<pid>/schedstat".
    """
    run = wait = 0
    for file in tasks.glob("*/schedstat"):  # none: not Linux; the pulse is then of clocks and caches alone
        try:
            ran, waited, _ = file.read_bytes().split()
        except (OSError, ValueError):  # the thread has ended, or the kernel keeps no such record
            continue
        run, wait = run + int(ran), wait + int(waited)
    return run, wait


def others_ns(stat: Path = Path("/proc/stat")) -> int | None:
    """ns of CPU time that all other programs, and other guests of the host, have used so far; None where Linux does not tell.

    Source: proc_stat(5), the line "cpu": user nice system idle iowait irq softirq steal guest guest_nice.
    """
    try:
        line = stat.read_text("ascii").partition("\n")[0].split()
        user, nice, system, _, _, irq, softirq, steal = map(int, line[1:9])
    except (OSError, ValueError):
        return None
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq + steal) * tick - time.process_time_ns()
