"""A model opened as the settings say, and what really runs in it."""

from __future__ import annotations

from dataclasses import dataclass

from edgeclip.bench.report import TowerUsed
from edgeclip.bench.settings import Settings
from edgeclip.bundle import Bundle, Variant
from edgeclip.runtime.model import Model, load


@dataclass(frozen=True)
class Used:
    """What ran, read back from the engines."""

    towers: tuple[TowerUsed, ...]
    threads: int
    fell_back: str = ""  # why no better engine, or none that was asked for first, did


def open_model(bundle: Bundle, settings: Settings, threads: int = 0) -> Model:
    """Open a bundle for a run.

    Args:
        threads: instead of the settings' own; 0: those.
    Raises:
        EngineError: no such engine or variant.
    """
    return load(
        bundle,
        settings.engines or None,
        threads or settings.threads or None,
        variants=settings.variants,
        decode=settings.decode,
    )


def used(model: Model) -> Used:
    """What is open in a model after its first calls."""
    opened = [(tower, tower.engine) for tower in model.towers]
    towers = tuple(
        TowerUsed(
            tower=tower.name,
            engine=engine.name,
            provider=engine.provider,
            variant=engine.variant.id,
            precision=engine.variant.computes_in,
            graph_sha256=_graph(model, engine.variant),
        )
        for tower, engine in opened
        if engine is not None
    )
    reasons = dict.fromkeys(tower.fell_back for tower, engine in opened if engine and tower.fell_back)
    return Used(towers, model.info().threads, "; ".join(reasons))


def _graph(model: Model, variant: Variant) -> str:
    """SHA-256 of the bundle's own graph; "" for one that was made beside an engine of this machine."""
    own = {one.id: one for one in model.manifest.variants}.get(variant.id)
    return model.manifest.files[own.files[0]].sha256 if own else ""
