"""Queries that do not count, until the machine answers at an even pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from math import log, sqrt
from statistics import median

from edgeclip.bench.report import Warmup

LEAST_S = 1.0
MOST_S, MOST_SHARE = 10.0, 0.3  # the shorter of the two, the second being of what is measured afterwards
STEADY = 0.02  # by how much two windows may differ
ERRORS = 1.5  # or by so many standard errors: 40 queries of a shared machine differ by 3 % without any trend
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
    """Make queries until two windows agree within 2 %, or within what chance makes of them: after 1 s and 10 queries, but for no longer than 10 s or
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
    windows: list[list[int]] = []
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
        windows.append(window)
        if clock() - begun >= least_ns and settled(windows):
            return Warmup(queries, (clock() - begun) / 1e9, True), median(window) / 1e6


def settled(windows: Sequence[Sequence[int]]) -> bool:
    """Whether the last two windows are as fast as the two before them; the last one as the one before, of fewer than four."""
    if len(windows) < 2:
        return False
    half = 2 if len(windows) >= 4 else 1
    before, after = list[int](), list[int]()
    for old, new in zip(windows[-2 * half : -half], windows[-half:], strict=True):
        common = min(len(old), len(new))  # the same queries
        before += old[:common]
        after += new[:common]
    return agree(before, after)


def agree(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether the same queries took as long in two windows: by the median of their ratios, beside its standard error.

    Source: the error of a median, sqrt(pi / 2) of the mean's, with the spread taken from the median absolute deviation.
    """
    ratios = [log(second / first) for first, second in zip(before, after, strict=True)]
    middle = median(ratios)
    spread = 1.4826 * median(abs(ratio - middle) for ratio in ratios)
    return abs(middle) <= max(STEADY, ERRORS * 1.2533 * spread / sqrt(len(ratios)))
