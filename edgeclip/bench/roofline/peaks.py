"""The peaks that towers share: each is measured once in a run, when the first tower needs it."""

from __future__ import annotations

from collections.abc import Mapping

from edgeclip.bench.roofline.copying import copy_gb_per_s, gpu_copy_gb_per_s
from edgeclip.bench.roofline.products import peak_gflops
from edgeclip.errors import EdgeClipError
from edgeclip.runtime.engines import Engine, EngineOptions
from edgeclip.runtime.engines.onnxruntime_session import CPU

# precision of weights -> of the product that it is compared with, where no product of its own is at hand
NEAREST = {"int4": "fp16", "fp8": "fp16"}


class Peaks:
    """What this machine can do; what it cannot be asked is 0, with the reason."""

    def __init__(self) -> None:
        self._products: dict[tuple[str, str, int, int], tuple[float, str]] = {}
        self._copies: dict[tuple[bool, int], tuple[float, str]] = {}

    def product(
        self, engine: Engine, options: EngineOptions, by_precision: Mapping[str, int]
    ) -> tuple[float, list[str]]:
        """GFLOP/s of products mixed as a tower has them, each at its own precision's peak; and what to say of it.

        Args:
            by_precision: operations of the tower.
        """
        total, us, notes = sum(by_precision.values()), 0.0, []
        for precision, operations in by_precision.items():
            near = NEAREST.get(precision, precision)
            if near != precision:
                notes.append(f"no product in {precision} is at hand: compared with one in {near}")
            peak, why = self._product(engine, options, near)
            if not peak:
                return 0.0, [f"peak in {near}: not measured: {why}"]
            us += operations / peak
        return (total / us if total else peak), notes

    def copy(self, engine: Engine, options: EngineOptions) -> tuple[float, str]:
        """GB/s, read and written, where the engine's weights lie; or 0 and what to say of that."""
        on_cpu = engine.provider == CPU
        key = (on_cpu, engine.threads if on_cpu else options.device)
        if key not in self._copies:
            try:
                found = copy_gb_per_s(engine.threads) if on_cpu else gpu_copy_gb_per_s(options.device)
                self._copies[key] = found, ""
            except EdgeClipError as error:
                self._copies[key] = 0.0, f"copy: not measured: {error}"
        return self._copies[key]

    def _product(self, engine: Engine, options: EngineOptions, precision: str) -> tuple[float, str]:
        key = (engine.name, precision, engine.threads, options.device)
        if key not in self._products:
            try:
                self._products[key] = peak_gflops(engine, options, precision), ""
            except EdgeClipError as error:
                self._products[key] = 0.0, str(error)
        return self._products[key]
