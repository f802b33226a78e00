"""A model opened as the settings say, and what really runs in it."""

from __future__ import annotations

from dataclasses import dataclass

from edgeclip.bench.report import TowerUsed
from edgeclip.bench.settings import Settings
from edgeclip.bundle import Bundle
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
    info, manifest = model.info(), model.manifest
    own = {variant.id: variant for variant in manifest.variants}
    towers, reasons = [], []
    for name, facts in info.towers.items():
        variant = own.get(facts["variant"])  # None: made beside an engine that was built on this machine
        towers.append(
            TowerUsed(
                tower=name,
                engine=facts["engine"],
                provider=facts["provider"],
                variant=facts["variant"],
                precision=variant.computes_in if variant else facts["precision"],
                graph_sha256=manifest.files[variant.files[0]].sha256 if variant else "",
            )
        )
        reasons += [facts["fell_back"]] if "fell_back" in facts else []
    return Used(tuple(towers), info.threads, "; ".join(dict.fromkeys(reasons)))
