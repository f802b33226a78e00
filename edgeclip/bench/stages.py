"""Where the time of one call goes: the runtime tells how long its parts took, inside the very call that is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter_ns

import numpy as np

from edgeclip.bench.between import Between
from edgeclip.bench.report import Stage, Stages
from edgeclip.bench.scenarios.loop import draws, settled
from edgeclip.bench.settings import Settings
from edgeclip.bench.statistics import spread
from edgeclip.bench.tasks import Task
from edgeclip.bench.warmup import warm_up
from edgeclip.runtime import stages
from edgeclip.runtime.model import Model

LEAST = 30  # calls, however long one takes
OTHER = "other"  # of the call's time what no part of the runtime claims
TRIES = 1000  # of one place, to learn what timing it takes

Clock = Callable[[], int]  # ns


def measure_stages(
    model: Model, task: Task, settings: Settings, between: Between, *, clock: Clock = perf_counter_ns
) -> Stages:
    """Time calls with one input each, for `settings.part_seconds` and 30 calls at least.

    Args:
        model: that the task calls.
        between: what is done between two calls.
        clock: of whole calls; that of the runtime's parts is `perf_counter_ns`.
    Returns:
        The whole call and its parts, which add up to it; a part that some calls do not have took 0 ms in those.
    Raises:
        InputError, EngineError: a query that fails.
    """

    def begin() -> Iterator[list[int]]:
        return draws(task.samples, 1, settings.seed)

    began: list[int] = []
    lasted: list[int] = []
    parts: list[dict[str, int]] = []
    places, spent, least = 0, 0, 1e9 * settings.part_seconds
    with settled(), stages.listen() as spans:
        place_us = _place_us(spans)
        warm_up(task.query, begin, settings.part_seconds)
        spans.clear()
        between.begin()
        for samples in begin():
            start = clock()
            task.query(samples)
            end = clock()
            began.append(start)
            lasted.append(end - start)
            parts.append(stages.shares(spans, start, end))
            places += len(spans)
            spans.clear()
            spent += end - start
            if spent >= least and len(parts) >= LEAST:
                break
            between.tick()
    notes = (
        *_of_copies(model, parts),
        f"timing the parts takes {places / len(parts) * place_us:.1f} µs of a call",
    )
    return _put_together(began, lasted, parts, notes)


def _put_together(
    began: Sequence[int], lasted: Sequence[int], parts: Sequence[dict[str, int]], notes: tuple[str, ...]
) -> Stages:
    whole = np.array(lasted) / 1e6  # (calls,) ms
    at = (np.array(began) - began[0]) / 1e6
    heard = {name for call in parts for name in call}
    rows = {
        name: np.array([call.get(name, 0) for call in parts]) / 1e6 for name in stages.STAGES if name in heard
    }
    rows[OTHER] = whole - sum(rows.values())
    return Stages(
        spread(whole, at),
        tuple(Stage(name, spread(ms, at), float(ms.mean() / whole.mean())) for name, ms in rows.items()),
        notes,
    )


def _of_copies(model: Model, parts: Sequence[dict[str, int]]) -> tuple[str, ...]:
    """What a reader must know of copies to a GPU and back."""
    if any("copy in" in call for call in parts):
        return ("copies and computing were awaited one by one to be told apart: their overlap is off here",)
    if any(tower.engine is not None and tower.engine.overlaps for tower in model.towers):
        return ("no copies: CPU and GPU share their memory",)
    return ("no copies: the engine computes where the pixels and ids are written",)


def _place_us(spans: list[stages.Span]) -> float:
    """What timing one part takes, in us."""
    start = perf_counter_ns()
    for _ in range(TRIES):
        stages.end(OTHER, stages.begin())
    end = perf_counter_ns()
    spans.clear()
    return (end - start) / 1e3 / TRIES
