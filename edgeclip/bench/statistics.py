"""How sure a percentile is: a bootstrap over blocks of time, since latencies that follow each other share their noise."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bench.report import Quantile, Spread

Floats = NDArray[np.float64]

PERCENTILES = (50, 90, 99)
BLOCKS = 20  # of equal time; each then lasts 0.4 s of --quick, longer than most of what disturbs a machine
RESAMPLES = 300  # the ends of an interval of 95 % then move by a twentieth of its width from seed to seed
CARRIED_BY = 5  # values beyond a percentile, without which it gets no interval: p99 needs 500 in all; and blocks that hold such
BINS = 512
CONFIDENCE = 0.95
LAUNCHES = 3  # fewer say nothing of how launches differ
# Student's factor of 95 % for BLOCKS - 1 degrees, and what resampling K blocks understates
_WIDTH = 2.093 * (BLOCKS / (BLOCKS - 1)) ** 0.5


def spread(ms: NDArray[Any], at_ms: NDArray[Any] | None = None, starts: Sequence[int] = ()) -> Spread:
    """The distribution of durations.

    Percentiles are numpy's ("linear": the value at rank q (n - 1), between two neighbours in proportion). Intervals come from
    resampling BLOCKS stretches of equal time with replacement: single values drawn anew would be taken for independent,
    and the interval of a series whose noise lasts for seconds would be several times too narrow. They are laid on
    logarithms, since tails are skewed. Where noise lasts for a fifteenth of a block they hold the truth of p50 and p90 in
    91 % of series, of p99 in 87 %; the shorter the noise, the nearer to 95 %.

    Launches that differ more than their blocks do make them wider, as leaving out one after another tells: of three launches of recorded
    noise blocks alone held p50 in 70 % of cases, so 95 %.

    Args:
        ms: (N,) durations in the order in which they were measured.
        at_ms: (N,) when each began; None: each began when the one before ended.
        starts: positions at which each launch begins.
    Raises:
        ValueError: nothing to describe, or a value that is not finite.
    Source: Kuensch 1989, The jackknife and the bootstrap for general stationary observations, Annals of Statistics 17.
    """
    values = np.asarray(ms, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"want (N,) finite durations, N at least 1, got {values.shape}")
    block = blocks_of(np.cumsum(values) if at_ms is None else np.asarray(at_ms, np.float64))
    points = np.percentile(values, PERCENTILES)
    carried = [
        q
        for q, point in zip(PERCENTILES, points, strict=True)
        if len(values) * (100 - q) >= 100 * CARRIED_BY
        and len(set(block[values >= point].tolist())) >= CARRIED_BY
    ]
    factors: dict[int, float] = {}
    if carried and points[0] > 0:
        logs = np.log(
            np.maximum(bootstrap(values, block, carried), np.finfo(np.float64).tiny)
        )  # (R, len(carried))
        halves = _WIDTH * logs.std(axis=0)
        if len(starts) >= LAUNCHES:
            halves = np.maximum(halves, _between(values, starts, carried))
        factors = dict(zip(carried, np.exp(halves).tolist(), strict=True))
    p50, p90, p99 = (
        _quantile(float(point), factors.get(q)) for q, point in zip(PERCENTILES, points, strict=True)
    )
    return Spread(
        count=len(values),
        mean_ms=float(values.mean()),
        min_ms=float(values.min()),
        p50=p50,
        p90=p90,
        p99=p99,
        max_ms=float(values.max()),
    )


def blocks_of(at_ms: Floats, count: int = BLOCKS) -> NDArray[np.intp]:
    """(N,) the block of equal time in which each value lies, 0 to count - 1."""
    start, end = float(at_ms.min()), float(at_ms.max())
    if end <= start:
        return np.arange(len(at_ms)) % count
    return np.minimum((at_ms - start) * (count / (end - start)), count - 1).astype(np.intp)


def bootstrap(
    values: Floats, block: NDArray[np.intp], percentiles: list[int], resamples: int = RESAMPLES
) -> Floats:
    """(resamples, P): the percentiles of series put together from blocks drawn with replacement, from a fixed seed."""
    order = np.argsort(values, kind="stable")
    present, block = np.unique(block, return_inverse=True)
    block, values, size = block[order], values[order], len(values)
    drawn = np.random.default_rng(0).multinomial(
        len(present), np.full(len(present), 1 / len(present)), resamples
    )  # (R, K): how often each block; a value counts as often as its block
    # A running count over all values for each resample costs half a second; over BINS, and then within the one hit, a hundredth.
    width = -(-size // BINS)
    bins = -(-size // width)
    in_bin = np.bincount(block * bins + np.arange(size) // width, minlength=len(present) * bins)
    until = np.cumsum(drawn @ in_bin.reshape(len(present), bins), axis=1)  # (R, bins)
    rows, found = np.arange(resamples), np.empty((resamples, len(percentiles)))
    for column, percentile in enumerate(percentiles):
        rank = percentile / 100 * (until[:, -1] - 1)
        hit = (until <= rank[:, None]).sum(axis=1)
        before = np.where(hit > 0, until[rows, hit - 1], 0)
        place = np.minimum(hit[:, None] * width + np.arange(width), size - 1)  # (R, width)
        counts = before[:, None] + np.cumsum(drawn[rows[:, None], block[place]], axis=1)
        found[:, column] = values[np.minimum(hit * width + (counts <= rank[:, None]).sum(axis=1), size - 1)]
    return found


def variance(without: Floats) -> Floats:
    """(...): of a figure, from (U, ...): without each of U units. Source: Efron and Stein 1981, The jackknife estimate of variance."""
    return np.asarray((len(without) - 1) / len(without) * ((without - without.mean(axis=0)) ** 2).sum(axis=0))


def student(freedom: float) -> float:
    """The factor of a two-sided interval of CONFIDENCE; within 3 % from 2 degrees of freedom, 1 % from 3.

    Source: Abramowitz and Stegun 1964, Handbook of Mathematical Functions, 26.7.5.
    """
    z, v = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), max(freedom, 1.0)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def _between(values: Floats, starts: Sequence[int], percentiles: list[int]) -> Floats:
    """(P,) half of the interval of each percentile's logarithm, from how launches differ."""
    launch = np.searchsorted(starts, np.arange(len(values)), side="right")
    without = np.log([np.percentile(values[launch != k + 1], percentiles) for k in range(len(starts))])
    return student(len(starts) - 1) * np.sqrt(variance(without))


def _quantile(point: float, factor: float | None) -> Quantile:
    return Quantile(point) if factor is None else Quantile(point, point / factor, point * factor)
