"""What each variant of the image tower costs in fidelity and gains in speed: all that open here, run in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter_ns

import numpy as np

from edgeclip.bench.between import Between
from edgeclip.bench.generated import generated_pictures
from edgeclip.bench.report import Spread, VariantPoint
from edgeclip.bench.samples import Inputs
from edgeclip.bench.scenarios.loop import settled
from edgeclip.bench.settings import Settings
from edgeclip.bench.statistics import spread
from edgeclip.bench.tasks import picture_tower_of
from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import EdgeClipError, EngineError
from edgeclip.runtime.engines import Engine, EngineOptions, local_variants, open_variant, run
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.memory import available_memory, estimate_memory
from edgeclip.runtime.threads import usable_cores
from edgeclip.runtime.towers import Tower

LEAST = 9  # rounds
WARM, WARM_ROUNDS = 0.1, 2  # share of the time and rounds, that do not count
# onnxruntime's threads spin for 0.2 ms after a run: they would take cores from whoever is next
SPINNING_NS = 300_000

Turn = Callable[[], object]
Clock = Callable[[], int]  # ns


def measure_variants(
    bundle: Bundle, settings: Settings, inputs: Inputs, between: Between
) -> tuple[VariantPoint, ...]:
    """Time the tower of pictures, or of detections, alone (on a GPU with its copies) in each variant, one picture a call, on the engine that this machine uses.

    All that open take turns, so that what slows the machine slows all of them.

    Returns:
        One for each variant that gives embeddings, those that were built for this engine first; () where the bundle has none.
        One that does not open, or that there is no memory for beside the others, keeps its reason.
    Raises:
        EngineError: none opens.
    """
    kind = picture_tower_of(settings.task)
    if not bundle.manifest.variants_of(kind):
        return ()
    options = EngineOptions(threads=settings.threads or usable_cores())
    name = _engine_in_use(bundle, settings, options)
    opened: dict[str, Engine] = {}
    turns: dict[str, Turn] = {}
    failed: dict[str, str] = {}
    variants = _variants(bundle, kind, name, options)
    try:
        for variant in variants:
            try:
                opened[variant.id] = _open(name, bundle, variant, options)
                turns[variant.id] = _turn(opened[variant.id], bundle, settings, inputs)
            except EdgeClipError as error:
                failed[variant.id] = str(error)
        seconds = settings.part_seconds * len(turns)
        spreads = dict(zip(turns, in_turn(list(turns.values()), seconds, between), strict=True))
    finally:
        for engine in opened.values():
            engine.close()
    return tuple(
        _point(bundle, variant, name, options, spreads.get(variant.id), failed.get(variant.id, "")) for variant in variants
    )  # fmt: skip


def in_turn(
    turns: Sequence[Turn], seconds: float, between: Between, *, clock: Clock = perf_counter_ns
) -> list[Spread]:
    """Time each turn of round after round, another one first each time, for so many timed seconds and nine rounds at least."""
    if not turns:
        return []
    rows: list[list[int]] = []
    began: list[int] = []
    spent, warm, least = 0, 0, 1e9 * seconds
    with settled():
        end = clock() + WARM * least
        while warm < WARM_ROUNDS or clock() < end:
            _round(turns, warm, clock)
            warm += 1
        between.begin()
        while len(rows) < LEAST or spent < least:
            began.append(clock())
            rows.append(_round(turns, len(rows), clock))
            spent += sum(rows[-1])
            between.tick()
    ms = np.array(rows) / 1e6  # (rounds, turns)
    at_ms = (np.array(began) - began[0]) / 1e6
    return [spread(column, at_ms) for column in ms.T]


def _round(turns: Sequence[Turn], first: int, clock: Clock) -> list[int]:
    """What each turn took, in ns, in the order of `turns`."""
    took = [0] * len(turns)
    for k in range(len(turns)):
        turn = (first + k) % len(turns)
        quiet = clock() + SPINNING_NS
        while clock() < quiet:
            pass
        start = clock()
        turns[turn]()
        took[turn] = clock() - start
    return took


def _engine_in_use(bundle: Bundle, settings: Settings, options: EngineOptions) -> str:
    tower = Tower(bundle, picture_tower_of(settings.task), engine=settings.engines or None, options=options)
    try:
        with tower.lease() as engine:
            return engine.name
    finally:
        tower.close()


def _variants(bundle: Bundle, kind: str, name: str, options: EngineOptions) -> list[Variant]:
    """What was built for the engine, then the bundle's own."""
    built = [
        v for v in local_variants(name, bundle, options) if (v.tower, v.axes.head) == (kind, "embeddings")
    ]
    ids = {variant.id for variant in built}
    return [*built, *(v for v in bundle.manifest.variants_of(kind) if v.id not in ids)]


def _open(name: str, bundle: Bundle, variant: Variant, options: EngineOptions) -> Engine:
    free = available_memory()
    if free is not None and _in_bundle(bundle, variant) and (need := estimate_memory(bundle, variant)) > free:
        raise EngineError(
            f"{variant.id}: takes {need >> 20} MiB beside the variants that are open, {free >> 20} MiB are free. Choose it alone "
            "with --variant."
        )
    return open_variant(name, bundle, variant, options)


def _turn(engine: Engine, bundle: Bundle, settings: Settings, inputs: Inputs) -> Turn:
    """One call with one picture; it has run once."""
    spec = bundle.manifest.preprocessing_of(engine.variant.tower)
    if spec is None:
        raise EngineError(f"{bundle.root}: this bundle does not say how its pictures are preprocessed.")
    slot = engine.slot(1)
    picture = (inputs.pictures or generated_pictures())[0]
    Preprocessor(spec, decode=settings.decode).into(picture, slot.inputs["pixels"][0])
    run(engine, slot)
    return lambda: run(engine, slot)


def _in_bundle(bundle: Bundle, variant: Variant) -> bool:
    return all(name in bundle.manifest.files for name in variant.files)


def _size(bundle: Bundle, variant: Variant, options: EngineOptions) -> int:
    """Bytes of its files; of what was made beside an engine on this machine, of the engine."""
    if _in_bundle(bundle, variant):
        return sum(bundle.manifest.files[name].size for name in variant.files)
    from edgeclip.runtime.tensorrt.store import store_of

    records = store_of(bundle, options).records()
    return max((record.size for record in records if record.variant.id == variant.id), default=0)


def _point(
    bundle: Bundle, variant: Variant, engine: str, options: EngineOptions, latency: Spread | None, failed: str
) -> VariantPoint:
    fidelity = variant.fidelity
    return VariantPoint(
        id=variant.id,
        precision=variant.computes_in,
        runs=latency is not None,
        latency=latency,
        relative_distance=fidelity.relative_distance if fidelity else None,
        cosine_min=fidelity.cosine_min if fidelity else None,
        size_bytes=_size(bundle, variant, options),
        engine=engine,
        failed=failed,
    )
