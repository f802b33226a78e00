"""Whether a graph is faster than another here: the two run in turn, and the ratio comes with its interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

CONFIDENCE = 0.95
MIN_ROUNDS, MAX_ROUNDS = 9, 60
SECONDS = 8.0  # of one comparison; a large model gets MIN_ROUNDS however long they take
WIDE = 1.5  # high / low: other programs took cores
_WARM = 2  # calls of each that do not count

clock = time.perf_counter


@dataclass(frozen=True)
class Latency:
    """One graph beside the reference, batch 1."""

    ms: float  # median
    reference_ms: float  # median of the reference's turns in the same rounds
    ratio: float  # reference / this, median over the rounds: above 1 is faster
    low: float  # the ratio's interval of 95 %
    high: float
    rounds: int
    threads: int
    device: str = ""  # where; "" is this machine

    @property
    def faster(self) -> bool:
        """The interval lies above 1."""
        return self.low > 1

    @property
    def steady(self) -> bool:
        """The interval is narrow enough to quote the ratio; on an idle machine it spans 1.1."""
        return self.high <= WIDE * self.low

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x ({self.low:.2f}-{self.high:.2f})"


def compare(
    reference: Callable[[], object],
    candidate: Callable[[], object],
    threads: int,
    *,
    seconds: float = SECONDS,
) -> Latency:
    """Run both in turn, the first of each round alternating, so that what slows the machine slows both.

    Args:
        reference, candidate: one call of each graph; neither may leave threads spinning.
    """
    for _ in range(_WARM):
        reference(), candidate()
    begun = clock()
    times: list[tuple[float, float]] = []  # seconds of the reference, of the candidate
    while len(times) < MIN_ROUNDS or (len(times) < MAX_ROUNDS and clock() - begun < seconds):
        if len(times) % 2:
            second = _timed(candidate)
            times.append((_timed(reference), second))
        else:
            times.append((_timed(reference), _timed(candidate)))
    ratios = sorted(a / b for a, b in times)
    low, high = interval(ratios)
    return Latency(
        ms=1e3 * median(b for _, b in times),
        reference_ms=1e3 * median(a for a, _ in times),
        ratio=median(ratios),
        low=low,
        high=high,
        rounds=len(times),
        threads=threads,
    )


def interval(values: list[float]) -> tuple[float, float]:
    """An interval for the median that needs no distribution: order statistics, by the sign test.

    Args:
        values: sorted, at least 6 (fewer cannot reach 95 %).
    Returns:
        the narrowest symmetric pair of values between which the true median lies with CONFIDENCE.
    Source: Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2.
    """
    n, outside, k = len(values), 0.0, 0
    while k < n // 2:
        outside += 2 * math.comb(n, k) / 2**n
        if outside > 1 - CONFIDENCE:
            break
        k += 1
    if not k:
        raise ValueError(f"want at least 6 values, got {n}")
    return values[k - 1], values[n - k]


def _timed(call: Callable[[], object]) -> float:
    start = clock()
    call()
    return clock() - start
