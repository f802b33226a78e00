"""Queries that do not count, until the machine answers at an even pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from edgeclip.bench.report import Warmup

LEAST_S = 1.0
MOST_S, MOST_SHARE = 10.0, 0.3  # the shorter of the two, the second being of what is measured afterwards
STEADY = 0.02  # by how much the medians of two windows may differ
WINDOWS, WINDOW_QUERIES = (
    4,
    5,
)  # windows in the shortest warm-up; two, which are compared, have ten queries at least

Query = Callable[[Sequence[int]], object]


def warm_up(
    query: Query,
    draws: Callable[[], Iterator[Sequence[int]]],
    min_seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> tuple[Warmup, float]:
    """Make queries until the medians of two windows agree within 2 %: after 1 s and 10 queries, but for no longer than 10 s or
    30 % of the time that is measured afterwards, with two queries at least.

    Every window makes the same queries, so that pictures which take longer do not pass for a slower machine.

    Args:
        draws: begins the same sequence of queries anew.
        min_seconds: that will be measured.
        clock: ns.
    Returns:
        What was done, and the last window's median in ms.
    """
    most_ns = 1e9 * min(MOST_S, MOST_SHARE * min_seconds)
    least_ns = min(1e9 * LEAST_S, most_ns / 2)
    begun, queries = clock(), 0
    before: list[int] = []
    while True:
        window, started = list[int](), clock()
        for samples in draws():
            start = clock()
            query(samples)
            end = clock()
            window.append(end - start)
            queries += 1
            if queries >= 2 and end - begun >= most_ns:
                return Warmup(queries, (end - begun) / 1e9, False), median(window) / 1e6
            if len(window) >= WINDOW_QUERIES and end - started >= least_ns / WINDOWS:
                break
        common = min(len(before), len(window))
        if common and clock() - begun >= least_ns:
            first, second = median(before[:common]), median(window[:common])
            if abs(second - first) <= STEADY * first:
                return Warmup(queries, (clock() - begun) / 1e9, True), median(window) / 1e6
        before = window
