"""How long models take for one picture and for one text here: in turns, so that what slows the machine slows all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from edgeclip.bench.pulse import others_ns
from edgeclip.bench.render.words import percent
from edgeclip.export.distill.teachers import Teachers
from edgeclip.runtime.threads import usable_cores

WARM = 3  # calls before the first that counts
BUSY = 0.1  # share of the cores that others took; with half of them gone a call of 2 ms took 140
LEAST = 5  # calls of each that count, however slow


@dataclass(frozen=True)
class Took:
    """Milliseconds of a call."""

    p50_ms: float
    p90_ms: float
    calls: int


@dataclass(frozen=True)
class Times:
    """Of every model, and how much the machine was its own."""

    pictures: tuple[Took, ...]
    texts: tuple[Took, ...]
    others: (
        float | None
    )  # share of the cores that other programs took meanwhile, 0-1; None where the system does not tell


def in_turns(calls: Sequence[Callable[[], object]], seconds: float) -> list[Took]:
    """Time each in turns, first to last and then last to first, until `seconds` are over; each is warmed up before.

    Args:
        calls: one query of each.
    """
    for call in calls:
        for _ in range(WARM):
            call()
    taken: list[list[int]] = [[] for _ in calls]
    until = time.perf_counter() + seconds
    forth = list(range(len(calls)))
    while len(taken[0]) < LEAST or time.perf_counter() < until:
        for number in forth if len(taken[0]) % 2 else reversed(forth):
            start = time.perf_counter_ns()
            calls[number]()
            taken[number].append(time.perf_counter_ns() - start)
    return [
        Took(float(np.percentile(ns, 50)) / 1e6, float(np.percentile(ns, 90)) / 1e6, len(ns)) for ns in taken
    ]


def time_models(models: Sequence[Teachers], text: str, seconds: float) -> Times:
    """One prepared picture and one text a call, of every model."""
    rng = np.random.default_rng(0)
    views = [
        [rng.standard_normal((1, 3, *spec.size)).astype(np.float32) for spec in model.specs]
        for model in models
    ]
    before, start = others_ns(), time.perf_counter_ns()
    pictures = in_turns(
        [partial(model.images, view) for model, view in zip(models, views, strict=True)], seconds / 2
    )
    texts = in_turns([partial(model.texts, [text]) for model in models], seconds / 2)
    others = share_of_others(before, others_ns(), time.perf_counter_ns() - start, os.cpu_count() or 1)
    return Times(tuple(pictures), tuple(texts), others)


def share_of_others(before: int | None, after: int | None, elapsed_ns: int, cores: int) -> float | None:
    """0-1 of `cores`, from what `others_ns` said before and after; None where it did not know."""
    if before is None or after is None:
        return None
    return min(1.0, max(0.0, (after - before) / (elapsed_ns * cores)))


def doubt(others: float | None) -> str:
    """What is to be said of the milliseconds; "" where the machine was nearly its own, or nobody knows."""
    if others is None or others < BUSY:
        return ""
    return f"Other programs took {percent(others)} of the cores while the models were timed: alone they are faster, some by far."


def threads() -> dict[str, int]:
    """How many each engine takes."""
    return {"PyTorch": torch.get_num_threads(), "ONNX Runtime": usable_cores()}
