"""Engines x variants x batches: each cell in a process of its own, kept in a file of its own, so that nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from edgeclip.bench.cells import Cell, Matrix
from edgeclip.bench.cold import label_pack
from edgeclip.bench.device import describe_device
from edgeclip.bench.matrix_cell import Asked, Found, measure_cell
from edgeclip.bench.plan import PROCESS_S, Tell, silent
from edgeclip.bench.report import Device
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import for_bundle, takes_labels, tower_of
from edgeclip.bundle import Bundle, Variant
from edgeclip.bundle.typed import from_json_value
from edgeclip.errors import BundleError, EngineError, InputError
from edgeclip.files import write_file
from edgeclip.runtime.engines import ENGINES, EngineOptions, local_variants
from edgeclip.runtime.threads import usable_cores
from edgeclip.version import __version__

# fields of the settings that change what a cell measures; the others belong to scenarios and to other parts
FIELDS = ("task", "threads", "decode", "part_seconds", "labels", "index_size", "seed")
LIMIT_S = 900.0  # of a cell: to open a large model on a small board takes minutes
OVERHEAD = 1.4  # of a cell's part_seconds, with its warm-up

log = logging.getLogger(__name__)

Measure = Callable[[Asked, Inputs, float], Found | str]  # what was found, or why nothing was


@dataclass(frozen=True)
class _Place:
    """One cell before it is measured."""

    engine: str
    variant: Variant
    batch: int
    path: Path  # of its result

    def __str__(self) -> str:
        return f"{self.engine}, {self.variant.id}, batch {self.batch}"


def run_matrix(
    bundle: Bundle,
    settings: Settings,
    engines: Sequence[str],
    variants: Sequence[str],
    batches: Sequence[int],
    folder: Path,
    inputs: Inputs,
    tell: Tell = silent,
    *,
    retry_failed: bool = False,
    limit_s: float = LIMIT_S,
    measure: Measure = measure_cell,
) -> Matrix:
    """Measure every cell that `folder` does not hold yet, and put all of them together.

    Args:
        settings: `part_seconds` is the time of one cell; of the others FIELDS count.
        engines: entries of ENGINES; (): those that this machine has.
        variants: ids; (): all of the tower that the task runs, and what engines were built for here.
        batches: inputs of one call.
        folder: holds one JSON file a cell, named by what decides it: bundle, settings, inputs, device, versions.
        retry_failed: measure cells again that failed before.
        limit_s: a cell that takes longer has failed.
        measure: does one cell.
    Raises:
        InputError: an unknown engine, variant, batch or task, or a folder that cannot be written. A cell that fails does not raise.
    """
    for batch in batches:
        if batch < 1:
            raise InputError(f"batches: expected numbers above 0, got {batch}.")
    if not batches:
        raise InputError("batches: expected at least one, got none.")
    device = describe_device()
    with tempfile.TemporaryDirectory(prefix="edgeclip-matrix-") as scratch:
        settings = for_bundle(settings, bundle)
        labelled = takes_labels(settings.task)  # refuses an unknown one
        pack = label_pack(bundle, settings, Path(scratch, "labels")) if labelled else None
        heads = ("labels", "prompts") if labelled and pack is None else ("embeddings",)
        rows = _rows(bundle, settings, engines, variants, heads)
        key = _key(bundle, settings, inputs, device)
        places = [
            _Place(engine, variant, batch, _path(folder, key, engine, variant, batch))
            for engine, variant in rows
            for batch in batches
        ]
        cells = _measured(
            places, bundle, settings, inputs, pack, tell, retry_failed=retry_failed, limit_s=limit_s, measure=measure
        )  # fmt: skip
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    manifest = bundle.manifest
    return Matrix(
        created, __version__, bundle.spec, manifest.model_id, bundle.digest, device, settings, tuple(cells)
    )


def _measured(
    places: Sequence[_Place],
    bundle: Bundle,
    settings: Settings,
    inputs: Inputs,
    pack: Path | None,
    tell: Tell,
    *,
    retry_failed: bool,
    limit_s: float,
    measure: Measure,
) -> list[Cell]:
    """The cells of all places, in their order."""
    kept = {place.path: _kept(place.path) for place in places}
    found = {
        path: cell
        for path, cell in kept.items()
        if cell is not None and not (retry_failed and cell.state == "failed")
    }
    todo = [place for place in places if place.path not in found]
    each = settings.part_seconds * OVERHEAD + PROCESS_S
    if found:
        tell(f"{len(found)} of {len(places)} cells done before", each * len(todo))
    for k, place in enumerate(todo):
        tell(f"cell {len(found) + 1} of {len(places)}: {place}", each * (len(todo) - k))
        wanted = replace(settings, engines=(place.engine,), variants=(place.variant.id,))
        asked = Asked(bundle.spec, wanted, place.batch, None if pack is None else str(pack))
        begun = time.perf_counter()
        result = measure(asked, inputs, limit_s)
        seconds = round(time.perf_counter() - begun, 3)
        each = (k * each + seconds) / (k + 1) if k else seconds
        cell = _cell(bundle, place, result, seconds)
        write_file(place.path, json.dumps(asdict(cell), indent=1))
        found[place.path] = cell
    return [found[place.path] for place in places]


def _cell(bundle: Bundle, place: _Place, result: Found | str, seconds: float) -> Cell:
    variant, files = place.variant, bundle.manifest.files
    blank = Cell(
        engine=place.engine, variant=variant.id, precision=variant.computes_in, batch=place.batch, state="failed", seconds=seconds,
        size_bytes=sum(files[name].size for name in variant.files if name in files),
        relative_distance=variant.fidelity.relative_distance if variant.fidelity else None,
    )  # fmt: skip
    if isinstance(result, str):
        return replace(blank, reason=result)
    return replace(
        blank, state="done", provider=result.provider, latency=result.latency, load_ms=result.load_ms,
        throughput_per_s=1e3 * place.batch / result.latency.mean_ms, peak_rss_bytes=result.peak_rss_bytes,
    )  # fmt: skip


def _rows(
    bundle: Bundle, settings: Settings, engines: Sequence[str], variants: Sequence[str], heads: Sequence[str]
) -> list[tuple[str, Variant]]:
    """Each engine with each variant that the task may run on it."""
    for name in engines:
        if name not in ENGINES:
            raise InputError(f"engine {name!r}: no such engine. {_choose(name, list(ENGINES))}")
    tower = tower_of(settings.task)
    options = EngineOptions(threads=settings.threads or usable_cores())
    rows: list[tuple[str, Variant]] = []
    for engine in dict.fromkeys(engines or _present()):
        every = {v.id: v for v in (*local_variants(engine, bundle, options), *bundle.manifest.variants)}
        rows += [(engine, v) for v in every.values() if v.tower == tower and v.axes.head in heads]
    known = dict.fromkeys(variant.id for _, variant in rows)
    if not known:
        raise InputError(
            f"{bundle.root}: task {settings.task!r} runs a tower of {tower}s, and the bundle has none."
        )
    for name in variants:
        if name not in known:
            raise InputError(
                f"{bundle.root}: no variant {name!r} that task {settings.task!r} could run. {_choose(name, list(known))}"
            )
    return [(engine, variant) for engine, variant in rows if not variants or variant.id in variants]


def _present() -> list[str]:
    found = [name for name, module in ENGINES.items() if import_module(module).present()]
    if not found:
        raise EngineError("no engine is installed. Run: pip install 'edgeclip[cpu]'")
    return found


def _choose(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f"Did you mean {near[0]!r}?" if near else f"Choose from {', '.join(known)}."


def _key(bundle: Bundle, settings: Settings, inputs: Inputs, device: Device) -> dict[str, Any]:
    """What decides the figures of all cells, beside engine, variant and batch. The device holds the versions."""
    here = asdict(device)
    del here["memory_bytes"]  # what a kernel keeps for itself changes from start to start
    return {
        "edgeclip": __version__,
        "bundle": bundle.digest,
        "inputs": inputs.facts.sha256,
        "device": here,
        **{name: getattr(settings, name) for name in FIELDS},
    }


def _path(folder: Path, key: dict[str, Any], engine: str, variant: Variant, batch: int) -> Path:
    """Readable, and different whenever the figures may be."""
    everything = {**key, "engine": engine, "variant": variant.id, "batch": batch}
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    return folder / f"{engine}-{variant.id}-batch{batch}-{digest[:16]}.json"


def _kept(path: Path) -> Cell | None:
    """The cell in a file; None where there is none, or one that is damaged, which is told."""
    try:
        return from_json_value(Cell, json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, BundleError) as error:
        log.warning("%s: not a cell that can be read (%s): measured again", path, error)
        return None
