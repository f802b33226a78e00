"""How much a figure of B differs from A's, and how sure that is.

Launches are drawn, not queries: thousands of queries say little about the next launch, since what disturbs a machine lasts for seconds.
The interval comes from leaving out one launch after another. And A and B are compared at an equal pulse of the machine: each
latency is divided by the pulse around it, and what is left is compared among moments that were alike, because others on the
same cores change the shape of the latencies too, which no factor takes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.bench.report import Latencies, Pulse
from edgeclip.bench.statistics import CARRIED_BY, LAUNCHES, blocks_of, student, variance

Floats = NDArray[np.float64]
Timed = tuple[Latencies, Pulse | None]

# Fewer than LAUNCHES launches are cut into so many stretches of equal time, to be left out in turn. Halves of three launches were tried: they
# share their launch's luck, and of unchanged pairs of 3 x 2.7 s of recorded noise 10 % were told apart instead of 5 %.
UNITS = 5
# sd of p50 from launch to launch at an equal pulse, measured: what stretches of fewer than LAUNCHES launches cannot show
BETWEEN_LAUNCHES = 0.03
# Moments are alike whose pulses are within a factor of 1.28. Narrower, and the pulse's own error decides which are compared (0.15: p90 of a
# quiet machine scatters half as much again); wider, and a busier machine is taken for a slower program (0.5: 4 % of unchanged pairs).
ALIKE = 0.25
# The pulse is left out where without it the error is less than half. Of two errors a chance can make either the smaller: with 1 instead
# of 2, one pair in a hundred of a busy machine was compared as measured, and 35 % apart.
SURER = 2.0
# Units that were alike, in effect; leaving out others shows no scatter. Asked for 3, three launches would lose nearly every pulse.
CARRYING = 2.0
# Above this percentile a latency is a wait of its own, which no pulse around it explains: its interval holds that of the figures as measured
# too. Of unchanged pairs of a busy machine 13 % were called worse by p99 without.
TAIL = 95


@dataclass(frozen=True)
class Difference:
    """log(B / A) of one figure."""

    log: float
    half: float  # of its interval of CONFIDENCE
    corrected: bool  # the machine's own change is taken out

    @property
    def change(self) -> float:
        """B / A - 1."""
        return math.expm1(self.log)

    @property
    def ends(self) -> tuple[float, float]:
        """The interval of `change`."""
        return math.expm1(self.log - self.half), math.expm1(self.log + self.half)

    @property
    def resolution(self) -> float:
        """The smallest change that would have been told from none."""
        return math.expm1(self.half)


def difference(a: Timed, b: Timed, percent: float | None) -> Difference | None:
    """B against A, each measured in launches of its own.

    Args:
        percent: which percentile; None: the mean.
    Returns:
        At an equal pulse, unless the pulse explains nothing and only adds noise of its own, as it may with a GPU. Where fewer than CARRYING
        units had moments like the other run's, as measured, with an interval that holds the figure divided by the pulse too. None
        where fewer than CARRIED_BY values lie beyond the percentile in either run.
    Source: Efron and Stein 1981, The jackknife estimate of variance, Annals of Statistics 9.
    """
    if percent and min(len(a[0].ms), len(b[0].ms)) * (100 - percent) < 100 * CARRIED_BY:
        return None
    logs = [np.log(np.asarray(latencies.ms, np.float64)) for latencies, _ in (a, b)]
    drawn = [units(latencies) for latencies, _ in (a, b)]
    found, alike = [_difference(logs, [np.ones(len(v)) for v in logs], drawn, percent)], False
    if a[1] and b[1]:
        pulse = [np.log(pulse_at(latencies, p)) for latencies, p in (a, b) if p]
        eased = [log - p for log, p in zip(logs, pulse, strict=True)]
        weights = _alike(*pulse)
        alike = min(map(_carrying, weights, drawn)) >= CARRYING
        found.append(
            _difference(eased, weights if alike else [np.ones(len(v)) for v in logs], drawn, percent)
        )
    corrected = alike and found[1][1] < SURER * found[0][1]
    floor = sum(BETWEEN_LAUNCHES**2 / len(one.starts) for one, _ in (a, b) if len(one.starts) < LAUNCHES)
    freedom = sum(len(np.unique(unit)) - 1 for unit in drawn)
    halves = [student(freedom) * math.sqrt(error**2 + floor) for _, error in found]
    log, half = found[corrected][0], halves[corrected]
    if (percent and percent > TAIL) or not alike:  # either may be the truth
        half = max(abs(other - log) + wide for (other, _), wide in zip(found, halves, strict=True))
    return Difference(log, half, corrected)


def in_turns(a: Floats, b: Floats, unit: NDArray[np.intp], percent: float | None) -> Difference:
    """B against A, run in turns with the same queries.

    Args:
        a, b: (N,) logarithms of latencies.
        unit: (N,) from 0, at least two: what is left out of both at once.
    """
    ones = np.ones(len(unit))
    return _over(_left_out(b, ones, unit, percent) - _left_out(a, ones, unit, percent))


def alone(logs: Floats, unit: NDArray[np.intp], percent: float | None) -> tuple[float, float]:
    """The interval of one side's figure itself, as `in_turns` takes it."""
    found = _over(_left_out(logs, np.ones(len(unit)), unit, percent))
    return math.exp(found.log - found.half), math.exp(found.log + found.half)


def units(latencies: Latencies) -> NDArray[np.intp]:
    """(N,) which unit each latency belongs to, from 0: its launch, or a stretch of it where there are fewer than LAUNCHES."""
    at, count = np.asarray(latencies.at_ms, np.float64), len(latencies.starts)
    pieces = 1 if count >= LAUNCHES else math.ceil(UNITS / count)
    parts = slices(latencies.starts, len(at))
    found = [blocks_of(at[part], pieces) + k * pieces for k, part in enumerate(parts)]
    return np.unique(np.concatenate(found), return_inverse=True)[1]


def pulse_at(latencies: Latencies, pulse: Pulse) -> Floats:
    """(N,) us: of each latency, the last pulse of its launch that was taken before it."""
    at, us = np.asarray(latencies.at_ms), np.empty(len(latencies.ms))
    pulses = slices(pulse.starts, len(pulse.us))
    for part, own in zip(slices(latencies.starts, len(us)), pulses, strict=True):
        place = np.searchsorted(np.asarray(pulse.at_ms[own]), at[part], side="right") - 1
        us[part] = np.asarray(pulse.us[own])[np.maximum(place, 0)]
    return us


def slices(starts: tuple[int, ...], count: int) -> list[slice]:
    """Launches, as slices of `count` values."""
    return [slice(first, last) for first, last in zip(starts, (*starts[1:], count), strict=True)]


def _over(figures: Floats) -> Difference:
    """From (1 + U,): with all units, and without each."""
    return Difference(
        float(figures[0]), student(len(figures) - 2) * math.sqrt(variance(figures)), corrected=False
    )


def _difference(
    logs: list[Floats], weights: list[Floats], drawn: list[NDArray[np.intp]], percent: float | None
) -> tuple[float, float]:
    """log(B / A), and its standard error by leaving out one unit after another."""
    figures = [_left_out(*run, percent) for run in zip(logs, weights, drawn, strict=True)]
    return float(figures[1][0] - figures[0][0]), math.sqrt(sum(map(variance, figures)))


def _left_out(logs: Floats, weights: Floats, unit: NDArray[np.intp], percent: float | None) -> Floats:
    """(1 + U,) the logarithm of the figure: of all units, and without each of them."""
    kept = np.concatenate([[unit >= 0], unit != np.arange(unit.max() + 1)[:, None]]) * weights  # (1 + U, N)
    kept[kept.sum(axis=1) == 0] = weights  # nothing else was alike: leaving it out tells nothing
    if percent is None:
        return np.asarray(np.log(kept @ np.exp(logs) / kept.sum(axis=1)))
    order = np.argsort(logs)
    until = np.cumsum(kept[:, order], axis=1)
    place = (until < percent / 100 * until[:, -1:]).sum(axis=1)
    return np.asarray(logs[order[np.minimum(place, len(logs) - 1)]])


def _carrying(weights: Floats, unit: NDArray[np.intp]) -> float:
    """How many units bear the weight, in effect: those that bear none say nothing when they are left out."""
    sums = np.bincount(unit, weights)
    return float(sums.sum() ** 2 / max((sums**2).sum(), 1e-300))


def _alike(a: Floats, b: Floats) -> list[Floats]:
    """Weights of A's and B's latencies under which both have the same share of each kind of moment.

    Args:
        a, b: (N,), (M,) log of the pulse.
    """
    middle = np.median(np.concatenate([a, b]))
    kinds = [np.round((v - middle) / ALIKE).astype(np.intp) for v in (a, b)]
    least = min(kind.min() for kind in kinds)
    counts = [np.bincount(kind - least, minlength=max(k.max() for k in kinds) - least + 1) for kind in kinds]
    # na nb / (na + nb), the weight of a difference of two means, shared among the latencies of its kind
    share = 1 / np.maximum(counts[0] + counts[1], 1)
    return [(share * other)[kind - least] for kind, other in zip(kinds, reversed(counts), strict=True)]
