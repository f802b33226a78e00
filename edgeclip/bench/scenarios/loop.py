"""Queries one after another, timed: the loop of every scenario but the server."""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.bench.between import Between, Nothing
from edgeclip.bench.early_stopping import estimate
from edgeclip.bench.report import Latencies, Pulse, ScenarioResult, Warmup
from edgeclip.bench.settings import ScenarioName, Settings
from edgeclip.bench.statistics import spread
from edgeclip.bench.tasks import Task
from edgeclip.bench.warmup import Query, warm_up

BLOCK = 1024  # queries that are drawn at once
ROOM = 16_384  # queries that fit before the arrays grow, which happens between two queries

Clock = Callable[[], int]  # ns


@dataclass(frozen=True)
class Timed:
    """Queries in the order in which they were made."""

    began_ns: NDArray[np.int64]
    lasted_ns: NDArray[np.int64]
    first: NDArray[np.int64]  # of the query's samples
    pulse: Pulse | None


@dataclass(frozen=True)
class Until:
    """When measuring ends: with enough of both, or at the limit."""

    min_seconds: float
    min_queries: int
    max_seconds: float

    @classmethod
    def of(cls, settings: Settings, min_queries: int | None = None) -> Until:
        """What the settings ask for."""
        least = settings.min_queries if min_queries is None else min_queries
        return cls(settings.min_seconds, least, settings.max_seconds)


def draws(samples: int, per_query: int, seed: int) -> Iterator[list[int]]:
    """The samples of query after query, without end: drawn with replacement, the same ones for the same arguments."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.integers(0, samples, (BLOCK, per_query)).tolist()


@contextmanager
def settled() -> Iterator[None]:
    """Nothing that exists now is looked at by the garbage collector while the block runs."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def timed(
    query: Query,
    queries: Iterator[Sequence[int]],
    until: Until,
    between: Between,
    clock: Clock = time.perf_counter_ns,
) -> Timed:
    """Make queries until there are enough, or the time is over. Only queries count as time."""
    least_ns, most_ns, least = 1e9 * until.min_seconds, 1e9 * until.max_seconds, until.min_queries
    began, lasted, first = (array("q", bytes(8 * ROOM)) for _ in range(3))
    tick, spent, made = between.tick, 0, 0
    between.begin()
    for samples in queries:
        if made == len(began):
            for kept in (began, lasted, first):
                kept.extend(kept)
        start = clock()
        query(samples)
        took = clock() - start
        began[made], lasted[made], first[made] = start, took, samples[0]
        made += 1
        spent += took
        if (spent >= least_ns and made >= least) or spent >= most_ns:
            break
        tick()
    began_ns, lasted_ns, firsts = (np.frombuffer(kept, np.int64, made) for kept in (began, lasted, first))
    return Timed(began_ns, lasted_ns, firsts, between.pulse())


def closed_loop(
    name: ScenarioName,
    task: Task,
    settings: Settings,
    between: Between,
    *,
    per_query: int,
    percentile: float | None,
    min_queries: int | None = None,
) -> ScenarioResult:
    """A scenario in which a query begins when the one before is done.

    Args:
        percentile: that gets a bound by early stopping; None: none does.
        min_queries: None: as the settings say.
    """

    def begin() -> Iterator[list[int]]:
        return draws(task.samples, per_query, settings.seed)

    until = Until.of(settings, min_queries)
    with settled():
        warmup, _ = warm_up(task.query, begin, settings.min_seconds)
        found = timed(task.query, begin(), until, between)
    return result(
        name, found, warmup, per_query=per_query, percentile=percentile, seconds=int(found.lasted_ns.sum()) / 1e9, until=until
    )  # fmt: skip


def result(
    name: ScenarioName,
    found: Timed,
    warmup: Warmup,
    *,
    per_query: int,
    percentile: float | None,
    seconds: float,
    until: Until,
) -> ScenarioResult:
    """What one launch of a scenario found."""
    ms, queries = found.lasted_ns / 1e6, len(found.lasted_ns)
    at_ms = (found.began_ns - found.began_ns[0]) / 1e6
    kept = Latencies(
        every=1, starts=(0,), at_ms=tuple(at_ms.astype(int).tolist()), ms=tuple(ms.tolist()), sample=tuple(found.first.tolist())
    )  # fmt: skip
    return ScenarioResult(
        scenario=name,
        launches=1,
        samples_per_query=per_query,
        queries=queries,
        samples=queries * per_query,
        seconds=seconds,
        throughput_per_s=queries * per_query / seconds,
        warmup=warmup,
        latency=spread(ms, at_ms),
        early_stopping=None if percentile is None else estimate(np.sort(ms).tolist(), percentile),
        latencies=kept,
        pulse=found.pulse,
        enough=seconds >= until.min_seconds and queries >= until.min_queries,
    )


def harness_us() -> float:
    """What the loop adds to a query: the whole of its time for a query that does nothing, by the best of forty rounds.

    A round is short, 0.4 ms, so that some go by undisturbed on a busy machine as well.
    """
    rounds, queries = 40, 512
    drawn = draws(16, 1, 0)

    def once() -> float:
        start = time.perf_counter_ns()
        timed(lambda samples: None, drawn, Until(0, queries, 60), Nothing())
        return (time.perf_counter_ns() - start) / 1e3 / queries

    return min(once() for _ in range(rounds))
