"""Several launches of one scenario as one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from math import ceil

import numpy as np

from edgeclip.bench.early_stopping import estimate
from edgeclip.bench.report import MOST_KEPT, Latencies, Pulse, ScenarioResult, Warmup
from edgeclip.bench.statistics import spread

RESTLESS = 0.25  # share of the launches that may begin before latencies have settled: others come and go on a shared machine


def merge(results: Sequence[ScenarioResult], begun_ns: Sequence[int]) -> ScenarioResult:
    """Put launches together: percentiles and early stopping over all of their queries, times as they followed each other.

    Args:
        results: of `run_scenario`, in the order in which they ran; one is enough.
        begun_ns: when each began to measure, by one clock.
    Returns:
        One result with at most MOST_KEPT latencies.
    """
    first = results[0]
    every = [one.latencies for one in results]
    known = [one for one in every if one is not None and one.every == 1]
    if len(known) < len(results) or len({(one.scenario, one.samples_per_query) for one in results}) > 1:
        raise ValueError("expected launches of one scenario, each with every latency")
    offsets = [(ns - begun_ns[0]) // 1_000_000 for ns in begun_ns]
    ms = np.concatenate([one.ms for one in known])
    at_ms = np.concatenate([np.add(one.at_ms, by) for one, by in zip(known, offsets, strict=True)])
    sample = np.concatenate([one.sample for one in known])
    queries, seconds = sum(one.queries for one in results), sum(one.seconds for one in results)
    samples = sum(one.samples for one in results)
    step = ceil(len(ms) / MOST_KEPT)
    starts = [0, *accumulate(len(one.ms) for one in known[:-1])]
    restless = sum(not one.warmup.steady for one in results)
    settling = [f"latencies had not settled after the warm-up of {restless} of {len(results)} launches"]
    return replace(
        first,
        launches=len(results),
        queries=queries,
        samples=samples,
        seconds=seconds,
        throughput_per_s=samples / seconds,
        warmup=Warmup(
            queries=sum(one.warmup.queries for one in results),
            seconds=sum(one.warmup.seconds for one in results),
            steady=restless <= len(results) * RESTLESS,
        ),
        latency=spread(ms, at_ms, starts),
        early_stopping=first.early_stopping
        and estimate(np.sort(ms).tolist(), first.early_stopping.percentile),
        latencies=Latencies(
            every=step,
            starts=tuple(ceil(start / step) for start in starts),
            at_ms=tuple(at_ms[::step].tolist()),
            ms=tuple(ms[::step].tolist()),
            sample=tuple(sample[::step].tolist()),
        ),
        pulse=_pulse([one.pulse for one in results], offsets),
        enough=all(one.enough for one in results),
        notes=(*dict.fromkeys(note for one in results for note in one.notes), *settling[: bool(restless)]),
    )


def _pulse(pulses: Sequence[Pulse | None], offsets: Sequence[int]) -> Pulse | None:
    known = [pulse for pulse in pulses if pulse is not None]
    if len(known) < len(pulses):
        return None
    return Pulse(
        starts=(0, *accumulate(len(one.us) for one in known[:-1])),
        at_ms=tuple(at + by for one, by in zip(known, offsets, strict=True) for at in one.at_ms),
        us=tuple(us for one in known for us in one.us),
    )
