"""Queries arrive at random times, whether or not anybody is free. Judged by the rate at which p99 holds a bound.

Arrivals are Poisson and drawn before the clock runs. The queue is whatever is due and not yet answered: each call takes up to `server_batch`
queries from its front. A latency counts from the moment at which its query was due, so what a slow call keeps waiting is
late, and counted (no coordinated omission).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, inf, sqrt

import numpy as np
from numpy.typing import NDArray

from edgeclip.bench.between import Between, Nothing
from edgeclip.bench.report import ScenarioResult, Warmup
from edgeclip.bench.scenarios.loop import Clock, Timed, Until, draws, result, settled, timed
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import Task
from edgeclip.bench.warmup import Query, warm_up

PERCENTILE = 99
BOUND = 10  # times p50 of a single stream, where the settings state no bound
STEPS = 5  # of the search: the rate is found to 1/32 of what batches one after another reach
ATTEMPTS, LESS = 3, 0.9  # at length, each at nine tenths of the rate before
TRIAL_QUERIES = 200  # at least, of one step: two of them may be late
PATIENCE = 10  # bounds that the front of the queue may wait, once p99 is lost, before it counts as overload
SPIN_NS = 200_000  # a sleep ends up to 100 us late, so it is made to end early

Sleep = Callable[[float], None]  # s


@dataclass(frozen=True)
class Arrivals:
    """What is offered."""

    due_ns: list[int]  # since the beginning, ascending
    samples: list[int]


@dataclass(frozen=True)
class Served:
    """What became of it."""

    latency_ns: NDArray[np.int64]  # of those that were answered
    calls: int
    seconds: float  # until the last answer, without the work between calls
    late: int  # answered after the bound
    stopped: bool  # before the last: p99 was lost

    def holds(self, bound_ns: float) -> bool:
        """Whether p99 is within the bound, for all that were offered."""
        return not self.stopped and bool(np.percentile(self.latency_ns, PERCENTILE) <= bound_ns)


def run(
    task: Task,
    settings: Settings,
    between: Between,
    reference_ms: float,
    clock: Clock = time.perf_counter_ns,
    sleep: Sleep = time.sleep,
) -> ScenarioResult:
    """See `run_scenario`."""
    with settled():
        warmup, single_ms = warm_up(
            task.query, lambda: draws(task.samples, 1, settings.seed), settings.min_seconds, clock
        )
        for size in range(2, settings.server_batch + 1):  # each size has its own memory
            task.query([0] * size)
        bound_ms = settings.server_bound_ms or BOUND * (reference_ms or single_ms)
        server = _Server(task, settings, between, bound_ms, clock, sleep)
        notes = []
        if not (rate := settings.server_rate_per_s):
            rate, note = server.search()
            notes.append(note)
        attempts = 1 if settings.server_rate_per_s else ATTEMPTS
        for left in reversed(range(attempts)):
            offered, served = server.at_length(rate, last=left == 0)
            if served.holds(server.bound_ns) or not left:
                break
            notes.append(
                f"At {rate:.4g}/s p99 did not hold at length; it was measured anew at {LESS:g} of it."
            )
            rate *= LESS
    if served.stopped:
        waiting = sum(due <= 1e9 * served.seconds for due in offered.due_ns[len(served.latency_ns) :])
        notes.append(
            f"Overload: {served.late} of {len(served.latency_ns)} answers came after the bound and {waiting} queries waited "
            f"when it was stopped after {served.seconds:.1f} s. Offer less than {rate:.4g}/s."
        )
    return _result(server, rate, offered, served, warmup, tuple(notes))


def arrivals(rate_per_s: float, until: Until, samples: int, seed: int) -> Arrivals:
    """Queries at random times, for as long and as many as asked for; the same pattern for a seed, stretched by the rate."""
    count = max(until.min_queries, ceil(rate_per_s * until.min_seconds)) + 1
    count += ceil(8 * sqrt(count))  # deviations: so many always last that long
    due_s = np.random.default_rng([seed, 1]).exponential(1 / rate_per_s, count).cumsum()
    end = max(until.min_queries, int(np.searchsorted(due_s, until.min_seconds)) + 1)
    end = min(end, int(np.searchsorted(due_s, until.max_seconds, "right")))
    drawn = np.random.default_rng([seed, 2]).integers(0, samples, max(end, 1))
    return Arrivals((1e9 * due_s[: len(drawn)]).astype(np.int64).tolist(), drawn.tolist())


def serve(
    query: Query,
    offered: Arrivals,
    batch: int,
    bound_ns: float,
    patience: float,
    between: Between,
    clock: Clock,
    sleep: Sleep,
) -> Served:
    """Answer all that is offered, as it falls due.

    Args:
        patience: bounds for which the front of the queue may wait once more are late than p99 allows; then it is stopped.
    """
    due, samples, total = offered.due_ns, offered.samples, len(offered.due_ns)
    allowed = total * (100 - PERCENTILE) // 100
    latency = np.zeros(total, np.int64)
    done = calls = late = 0
    origin = clock()  # moves on with all that happens between calls
    while done < total:
        now = clock() - origin
        if (left := due[done] - now) > 0:
            if left > SPIN_NS:
                sleep((left - SPIN_NS) / 1e9)
            continue
        end = done + 1
        while end < total and end - done < batch and due[end] <= now:
            end += 1
        query(samples[done:end])
        now = clock() - origin
        for i in range(done, end):
            took = now - due[i]
            latency[i] = took
            late += took > bound_ns
        done, calls = end, calls + 1
        if late > allowed and done < total and now - due[done] > patience * bound_ns:
            return Served(latency[:done], calls, now / 1e9, late, True)
        begun = clock()
        between.tick()
        origin += clock() - begun
    return Served(latency, calls, now / 1e9, late, False)


class _Server:
    """One task under load."""

    def __init__(
        self, task: Task, settings: Settings, between: Between, bound_ms: float, clock: Clock, sleep: Sleep
    ) -> None:
        self.task, self.settings, self.between, self.bound_ms = task, settings, between, bound_ms
        self.bound_ns = 1e6 * bound_ms
        self.until = Until.of(settings)
        self._clock, self._sleep = clock, sleep

    def at_length(self, rate: float, *, last: bool) -> tuple[Arrivals, Served]:
        """At one rate, as long as the settings say; given up when p99 is lost, by the last attempt only in an overload."""
        self.between.begin()
        return self._serve(rate, self.until, self.between, PATIENCE if last else -inf)

    def search(self) -> tuple[float, str]:
        """The highest rate that holds in short runs, with how it was found: halving what is left, STEPS times."""
        seconds = min(self.settings.part_seconds, self.settings.min_seconds)
        until = Until(seconds, TRIAL_QUERIES, 4 * seconds)
        most = self._most_per_s(seconds / 2)
        low, high = 0.0, most
        for _ in range(STEPS):
            rate = (low + high) / 2
            _, served = self._serve(rate, until, Nothing(), -inf)
            low, high = (rate, high) if served.holds(self.bound_ns) else (low, rate)
        found = low or high
        return found, (
            f"The rate was searched in {STEPS} runs of {seconds:g} s or {TRIAL_QUERIES} queries, up to {most:.4g}/s, which calls "
            f"one after another reach{'' if low else '; none of them held the bound'}."
        )

    def _most_per_s(self, seconds: float) -> float:
        """Samples a second of full calls, or of single ones, without a pause: nobody answers more."""

        def rate(per_query: int) -> float:
            drawn = draws(self.task.samples, per_query, self.settings.seed)
            found = timed(self.task.query, drawn, Until(seconds / 2, 2, seconds), Nothing(), self._clock)
            return float(per_query * len(found.lasted_ns) / (found.lasted_ns.sum() / 1e9))

        return max(rate(1), rate(self.settings.server_batch))

    def _serve(self, rate: float, until: Until, between: Between, patience: float) -> tuple[Arrivals, Served]:
        offered = arrivals(rate, until, self.task.samples, self.settings.seed)
        batch = self.settings.server_batch
        return offered, serve(
            self.task.query, offered, batch, self.bound_ns, patience, between, self._clock, self._sleep
        )


def _result(
    server: _Server, rate: float, offered: Arrivals, served: Served, warmup: Warmup, notes: tuple[str, ...]
) -> ScenarioResult:
    answered = len(served.latency_ns)
    due, first = (np.array(kept[:answered], np.int64) for kept in (offered.due_ns, offered.samples))
    found = result(
        "server", Timed(due, served.latency_ns, first, server.between.pulse()), warmup, per_query=1, percentile=PERCENTILE,
        seconds=served.seconds, until=server.until,
    )  # fmt: skip
    return replace(
        found,
        enough=found.enough and not served.stopped,
        offered_per_s=rate,
        bound_ms=server.bound_ms,
        holds=served.holds(server.bound_ns),
        mean_batch=answered / served.calls,
        notes=notes,
    )
