"""How near each tower comes to what this machine can do: its operations, counted, beside a product of matrices and a copy, measured.

Source: Williams, Waterman, Patterson 2009, Roofline: an insightful visual performance model, Communications of the ACM 52(4).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bench.generated import NOUNS, SENTENCES
from edgeclip.bench.report import Roof
from edgeclip.bench.roofline.copying import last_level_cache
from edgeclip.bench.roofline.operations import RULES
from edgeclip.bench.roofline.peaks import Peaks
from edgeclip.bench.roofline.work import Work, count_work
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import tower_of
from edgeclip.bundle import Bundle, Port
from edgeclip.runtime.engines import Engine, Slot, rows_at_once
from edgeclip.runtime.engines.onnxruntime_session import CPU
from edgeclip.runtime.model import Model
from edgeclip.runtime.towers import Tower

MIN_CALLS = 5  # of a tower, however long they take

clock = time.perf_counter_ns


def measure_roofline(
    bundle: Bundle, model: Model, settings: Settings, batch: int = 1, texts: Sequence[str] = ()
) -> tuple[Roof, ...]:
    """One Roof for each tower that a query of the task runs.

    Args:
        model: that bundle, opened; what is open in it is measured, on its engine and threads.
        settings: `task`, `part_seconds` and `labels` count.
        batch: rows of one call.
        texts: that queries draw from: the tower runs at their middle length; (): sentences of edgeclip's own.
    Raises:
        InputError: no such task. EngineError, MissingExtraError: a tower that cannot run, or whose operations cannot be counted.
    """
    kind = tower_of(settings.task)
    if not _open_towers(model, kind):
        model.warmup(text=kind == "text")
    peaks = Peaks()
    return tuple(
        _roof(bundle, model, tower, settings, batch, texts or SENTENCES, peaks)
        for tower in _open_towers(model, kind)
    )


def _open_towers(model: Model, kind: str) -> list[Tower]:
    return [tower for tower in model.towers if tower.kind == kind and tower.engine is not None]


def _roof(
    bundle: Bundle,
    model: Model,
    tower: Tower,
    settings: Settings,
    batch: int,
    texts: Sequence[str],
    peaks: Peaks,
) -> Roof:
    with tower.lease() as engine:
        rows = rows_at_once(engine, batch)
        tokens = _tokens(model, texts) if tower.kind == "text" else None
        slot = _filled(engine, rows, tokens, len(settings.labels or NOUNS))
        ms = _median_ms(engine, slot, settings.part_seconds)
        work = count_work(bundle, engine, tower.options, slot.inputs)
        peak, notes = peaks.product(engine, tower.options, work.by_precision)
        copied, why = peaks.copy(engine, tower.options)
    notes = [*work.notes, *notes, *([why] if why else [])]
    if rows < batch:
        notes.append(f"batch {rows}: the engine was built for no more")
    if tokens is not None:
        notes.append(f"texts of {slot.inputs['input_ids'].shape[1]} tokens")
    return compose(tower.name, engine, work, rows, ms, peak, copied, notes)


def compose(
    name: str,
    engine: Engine,
    work: Work,
    batch: int,
    ms: float,
    peak: float,
    copied: float,
    notes: Sequence[str],
) -> Roof:
    """Put what was measured side by side.

    Args:
        name: of the tower.
        ms: of one call.
        peak: GFLOP/s of the products; 0: not measured, as a note says.
        copied: GB/s of the copy; 0: likewise.
    """
    gflops = work.operations / ms / 1e6
    share = gflops / peak if peak else 0.0
    reading = work.weight_bytes / copied / 1e6 / ms if copied else 0.0
    cached = engine.provider == CPU and work.weight_bytes < last_level_cache()
    return Roof(
        tower=name, variant=engine.variant.id, precision=work.precision, batch=batch, operations=work.operations,
        weight_bytes=work.weight_bytes, ms=ms, gflops=gflops, peak_gflops=peak, share_of_peak=share, copy_gb_per_s=copied,
        share_of_copy=reading, bound="memory" if reading > share and not cached else "compute",
        by_operator=dict(work.by_operator), notes=(*notes, *_doubts(work, share, reading, cached)),
    )  # fmt: skip


def _doubts(work: Work, share: float, reading: float, cached: bool) -> list[str]:
    """What a reader must know of the two shares."""
    found = []
    products = sum(time for kind, time in work.by_operator.items() if kind in RULES)
    if share and products:
        found.append(
            f"its products take {100 * products:.0f} % of the time, at {100 * share / products:.0f} % of their peak"
        )
    if share > 1:
        found.append("above its peak: its products are faster than the square ones that were measured")
    if cached:
        found.append("the weights fit into the CPU's cache: reading them takes less than a copy of memory")
    elif reading > 1:
        found.append("faster than the copy: some of the weights are still in a cache from the call before")
    return found


def _tokens(model: Model, texts: Sequence[str]) -> NDArray[np.int32]:
    """(1, L): the ids of the text of middle length."""
    encoded = model.encode_texts(texts)
    middle = int(np.argsort(encoded.lengths, kind="stable")[len(texts) // 2])
    return np.asarray(encoded.input_ids[middle : middle + 1, : encoded.lengths[middle]], np.int32)


def _filled(engine: Engine, rows: int, tokens: NDArray[np.int32] | None, labels: int) -> Slot:
    """A slot with inputs of the right kind in it: noise as pixels, real ids, unit rows as labels."""
    ports = {port.name: port for port in engine.variant.inputs}
    sizes = {symbol: 1 for port in ports.values() for symbol in port.shape[1:] if isinstance(symbol, str)}
    sizes |= {"P": labels} if "P" in sizes else {}
    sizes |= {"L": tokens.shape[1]} if tokens is not None and "L" in sizes else {}
    sizes |= {"B": 1} if any(port.shape[0] == "B" for port in ports.values()) else {}
    slot, numbers = engine.slot(rows, sizes), np.random.default_rng(0)
    for name, array in slot.inputs.items():
        if tokens is not None:
            array[...] = tokens
        else:
            array[...] = _noise(ports[name], array.shape, numbers)
    return slot


def _noise(port: Port, shape: Sequence[int], numbers: np.random.Generator) -> NDArray[Any]:
    if port.dtype == "bool":
        return np.ones(shape, bool)
    if port.dtype == "uint8":
        return numbers.integers(0, 256, shape, np.uint8)
    rows = numbers.normal(size=shape)
    return rows if len(shape) == 4 else rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _median_ms(engine: Engine, slot: Slot, seconds: float) -> float:
    engine.submit(slot)
    engine.wait(slot)
    times: list[int] = []
    while len(times) < MIN_CALLS or sum(times) < 1e9 * seconds:
        begun = clock()
        engine.submit(slot)
        engine.wait(slot)
        times.append(clock() - begun)
    return median(times) / 1e6
