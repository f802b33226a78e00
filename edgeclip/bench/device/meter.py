"""Energy between two instants, from a counter that is read now and then, or from powers summed over time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LONGEST_GAP_NS = 2_500_000_000  # between two powers: what happened in a longer one is not known

SHORTEST_NS = 200_000_000  # that a counter's mean power is taken over: RAPL counts in steps of a millisecond


class Meter:
    """Collects what one source says of its energy.

    A counter holds whatever happened between two readings; at the ends of an interval, up to half a sampling period each, it is
    taken to rise evenly. Powers are joined by straight lines.
    """

    def __init__(self) -> None:
        self._at: list[int] = []
        self._energy: list[float] = []
        self._power: list[float] = []
        self._counts = True

    def add(self, at_ns: int, energy_j: float | None, power_w: float | None) -> None:
        """One reading; one without a figure is left out."""
        if energy_j is None and power_w is None:
            return
        if energy_j is None:
            assert power_w is not None
            self._counts = False
            step = (at_ns - self._at[-1]) / 1e9 * (power_w + self._power[-1]) / 2 if self._at else 0.0
            energy_j = (self._energy[-1] if self._at else 0.0) + step
            self._power.append(power_w)
        self._at.append(at_ns)
        self._energy.append(energy_j)

    def between(self, begun_ns: int, ended_ns: int) -> float | None:
        """Joules; None where the readings do not reach over the interval, or miss a part of it."""
        if len(self._at) < 2 or not self._at[0] <= begun_ns < ended_ns <= self._at[-1]:
            return None
        at = np.array(self._at, np.int64)
        inside = at[
            max(0, np.searchsorted(at, begun_ns, "right") - 1) : np.searchsorted(at, ended_ns, "left") + 1
        ]
        if not self._counts and np.diff(inside).max(initial=0) > LONGEST_GAP_NS:
            return None
        first, last = np.interp([begun_ns - at[0], ended_ns - at[0]], at - at[0], self._energy)
        return float(last - first)

    def powers(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(N,) instants in ns and (N,) W: as read, or the mean since the counter's reading before."""
        at = np.array(self._at, np.int64)
        if not self._counts:
            return at, np.array(self._power)
        kept = [0] if self._at else []
        for index, instant in enumerate(self._at):
            if instant - self._at[kept[-1]] >= SHORTEST_NS:
                kept.append(index)
        return at[kept[1:]], np.diff(np.array(self._energy)[kept]) / (np.diff(at[kept]) / 1e9)
