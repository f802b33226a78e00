"""Throughput and latency of whole calls against the batch size and against the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from edgeclip.bench.between import Between
from edgeclip.bench.report import Quantile, Spread, SweepPoint
from edgeclip.bench.samples import Inputs
from edgeclip.bench.scenarios.loop import Until, draws, settled, timed
from edgeclip.bench.settings import Settings
from edgeclip.bench.statistics import spread
from edgeclip.bench.tasks import open_task
from edgeclip.bench.warmup import warm_up
from edgeclip.errors import EdgeClipError
from edgeclip.runtime.model import Model
from edgeclip.runtime.threads import usable_cores

LEAST = 5  # calls of a point
PATIENCE = 3  # times part_seconds, after which a point ends even with fewer
NONE = Spread(0, 0.0, 0.0, Quantile(0.0), Quantile(0.0), Quantile(0.0), 0.0)  # of a point that failed

OpenModel = Callable[[int], AbstractContextManager[Model]]


def sweep_batches(
    model: Model, inputs: Inputs, settings: Settings, between: Between
) -> tuple[SweepPoint, ...]:
    """One point for each of `settings.batches`: that many inputs in one call, from decoding to the result.

    A batch that the engine was not built for, or that there is no memory for, keeps its reason.
    """
    return tuple(_point(batch, batch, lambda: model, inputs, settings, between) for batch in settings.batches)


def sweep_threads(
    open_model: Callable[[int], Model], inputs: Inputs, settings: Settings, between: Between
) -> tuple[SweepPoint, ...]:
    """One point for 1, 2, 4, ... threads up to the cores this process may use: one input a call, each with a model of its own.

    Args:
        open_model: given the number of threads; what it opens is closed here.
    """
    found = []
    for threads in thread_counts(usable_cores()):
        opened: list[Model] = []

        def fresh(threads: int = threads, opened: list[Model] = opened) -> Model:
            opened.append(open_model(threads))
            return opened[0]

        try:
            found.append(_point(threads, 1, fresh, inputs, settings, between))
        finally:
            for model in opened:
                model.close()
    return tuple(found)


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and the cores themselves."""
    return sorted({cores, *(1 << k for k in range(cores.bit_length()) if 1 << k <= cores)})


def _point(
    value: int, rows: int, opened: Callable[[], Model], inputs: Inputs, settings: Settings, between: Between
) -> SweepPoint:
    """Calls with `rows` inputs each."""
    seconds = settings.part_seconds
    until = Until(seconds, LEAST, PATIENCE * seconds)
    try:
        model = opened()
        task = open_task(settings.task, model, inputs, settings)

        def begin() -> Iterator[list[int]]:
            return draws(task.samples, rows, settings.seed)

        task.query([0])  # opens the towers
        if (most := _max_batch(model)) is not None and rows > most:
            return SweepPoint(value, 0.0, NONE, f"the engine was built for {most} rows a call at most")
        with settled():
            warm_up(task.query, begin, seconds)
            found = timed(task.query, begin(), until, between)
    except (EdgeClipError, MemoryError) as error:
        return SweepPoint(value, 0.0, NONE, str(error) or "no memory is left")
    ms = found.lasted_ns / 1e6
    at_ms = (found.began_ns - found.began_ns[0]) / 1e6
    return SweepPoint(value, 1e3 * rows * len(ms) / float(ms.sum()), spread(ms, at_ms))


def _max_batch(model: Model) -> int | None:
    """Rows of the largest call that every open tower takes, as its engine was built; None: any. More rows are several calls."""
    found = [getattr(tower.engine, "max_batch", None) for tower in model.towers]
    return min((rows for rows in found if rows is not None), default=None)
