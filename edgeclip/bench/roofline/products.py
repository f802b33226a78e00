"""The rate at which an engine multiplies matrices here: what a tower's own rate is compared with."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from edgeclip.bundle import Axes, Bundle, Licence, Manifest, Port, Variant
from edgeclip.bundle.manifest import FileEntry
from edgeclip.bundle.store import EMBEDDED
from edgeclip.errors import EngineError
from edgeclip.files import sha256_file
from edgeclip.runtime.engines import Engine, EngineOptions, open_variant
from edgeclip.runtime.engines.seam import Slot

FOLDER = (EMBEDDED / "probes").resolve()  # made by benchmarks/make_probes.py
CHAIN = 8  # products of one call in an "inside" graph
LONGEST_S = 0.3  # of one call: no larger product is tried where it would take longer
SECONDS = 0.25  # of calls at one size, at least MIN_CALLS
MIN_CALLS = 3
_NAME = re.compile(r"(direct|inside)-(\w+)-(\d+)\.onnx")
_DIRECT = {"fp32": ("float32", "float32"), "fp16": ("float16", "float16"), "int8": ("uint8", "int32")}

clock = time.perf_counter_ns


@dataclass(frozen=True)
class Probe:
    """One graph that multiplies."""

    variant: Variant
    form: str
    precision: str
    side: int

    @property
    def rows(self) -> int:
        """The batch of a call."""
        return self.side if self.form == "direct" else 1

    @property
    def operations(self) -> int:
        """Of one call."""
        return 2 * self.side**3 * (1 if self.form == "direct" else CHAIN)


def peak_gflops(engine: Engine, options: EngineOptions, precision: str) -> float:
    """The best rate of a product of square matrices, the second of which is a constant.

    Args:
        engine: what is compared: the product runs on one of its name, with its threads.
        options: that it was opened with.
        precision: fp32, fp16, bf16 or int8.
    Raises:
        EngineError, MissingExtraError: this engine cannot multiply in this precision.
    """
    form = "inside" if engine.overlaps else "direct"
    probes = [p for p in all_probes() if (p.form, p.precision) == (form, precision)]
    if not probes:
        raise EngineError(f"no product in {precision} is at hand for {engine.name}.")
    with tempfile.TemporaryDirectory(prefix="edgeclip-probes-") as folder:
        own = replace(options, threads=engine.threads, build=True, engines=Path(folder), allow_fallback=False)
        return climb(probes, lambda probe: _rate(probe, engine.name, own, engine.provider))


def climb(probes: list[Probe], rate: Callable[[Probe], float]) -> float:
    """The best rate, operations per ns, of larger and larger products, while a call is short enough."""
    best = 0.0
    for probe in sorted(probes, key=lambda p: p.side):
        if best and probe.operations / best > 1e9 * LONGEST_S:
            break
        best = max(best, rate(probe))
    return best


def _rate(probe: Probe, name: str, options: EngineOptions, provider: str) -> float:
    engine = open_variant(name, probes_bundle(), probe.variant, options)
    try:
        if engine.provider != provider:
            raise EngineError(f"{probe.variant.id}: ran on {engine.provider}, the tower on {provider}.")
        slot = engine.slot(probe.rows)
        array = slot.inputs["x"]
        numbers = np.random.default_rng(0).uniform(0, 1, array.shape)
        array[...] = (numbers * (255 if array.dtype == np.uint8 else 1)).astype(array.dtype)
        return probe.operations / _best_ns(engine, slot)
    finally:
        engine.close()


def _best_ns(engine: Engine, slot: Slot) -> int:
    """Of several calls, after one that does not count, the shortest: a peak is what the machine can do when it is left alone."""
    engine.submit(slot)
    engine.wait(slot)
    times: list[int] = []
    while len(times) < MIN_CALLS or sum(times) < 1e9 * SECONDS:
        begun = clock()
        engine.submit(slot)
        engine.wait(slot)
        times.append(clock() - begun)
    return min(times)


@cache
def all_probes() -> tuple[Probe, ...]:
    """What lies in FOLDER."""
    found = []
    for path in sorted(FOLDER.glob("*.onnx")):
        form, precision, side = _NAME.fullmatch(path.name).groups()  # type: ignore[union-attr]
        shapes: tuple[int | str, ...] = ("N", int(side)) if form == "direct" else ("N", 1, 1)
        kinds = _DIRECT[precision] if form == "direct" else ("float32", "float32")
        ports = [Port(name, kind, shapes) for name, kind in zip("xy", kinds, strict=True)]  # type: ignore[arg-type]
        axes = Axes(precision=precision)  # type: ignore[arg-type]
        variant = Variant(path.stem, "image", axes, (path.name,), (ports[0],), (ports[1],))
        found.append(Probe(variant, form, precision, int(side)))
    return tuple(found)


@cache
def probes_bundle() -> Bundle:
    """The probes as a bundle, which is what engines open; none of it is a model."""
    files = {p.name: FileEntry(p.stat().st_size, sha256_file(p)) for p in FOLDER.glob("*.onnx")}
    manifest = Manifest(
        name="probes", model_id="0" * 64, family="probes", embedding_dim=1, activation="softmax", logit_scale=1.0,
        logit_bias=0.0, variants=tuple(probe.variant for probe in all_probes()), preprocessing=None, text=None,
        licence=Licence("Apache-2.0"), files=files,
    )  # fmt: skip
    return Bundle(FOLDER, manifest, "probes")
