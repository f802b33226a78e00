"""What every engine offers, and the settings that are passed to it whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.manifest import Port, Variant
from edgeclip.errors import EngineError

UNCOUNTED = {"counted": False}  # `extra` of a warning that is for information: `--strict` passes over it


@dataclass(frozen=True)
class EngineOptions:
    """Everything that may be set about an engine. What an engine cannot honour it refuses."""

    threads: int | None = None  # of one operator; None: the physical cores this process may use
    spinning: bool = True  # waiting threads spin for 0.2 ms: a few % less latency; False on battery
    arena: bool = True  # keep freed memory for the next call; False gives it back, at some cost in time
    prepacking: bool = True  # reorder weights for the kernels; False opens faster and runs a quarter slower
    device: int = 0  # number of the GPU
    engines: Path | None = (
        None  # folder of engines that were built ahead; None: the bundle's own in the cache
    )
    build: bool = (
        False  # build an engine that is missing when it is opened, which takes minutes; False refuses
    )
    allow_fallback: bool = False  # let a CUDA session that could not start run on the CPU instead
    provider_options: Mapping[str, str] = field(
        default_factory=dict
    )  # handed to the execution provider as they are
    session_options: Mapping[str, str] = field(
        default_factory=dict
    )  # onnxruntime session configuration entries


@dataclass(eq=False)
class Slot:
    """Preallocated arrays for one call. Not to be touched between `submit` and `wait`, nor shared by two threads at once."""

    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]
    binding: Any = None  # the engine's own
    shape: tuple[Any, ...] = ()  # batch and sizes, for whoever keeps slots


class Engine(Protocol):
    """An opened graph. `submit` of different slots may be called from different threads at once."""

    name: str  # its entry in ENGINES
    provider: str  # what really runs it, read back after opening
    threads: int  # CPU threads of one operator
    variant: Variant
    overlaps: (
        bool  # `submit` returns before the work is done, so that the next batch can be prepared meanwhile
    )

    def slot(self, batch: int, sizes: Mapping[str, int] | None = None) -> Slot:
        """Arrays for `batch` rows; `sizes` gives the graph's other symbolic sizes, e.g. {"L": 12}."""

    def submit(self, slot: Slot) -> None:
        """Start the work; an engine on the CPU may do it all here. Raises EngineError."""

    def wait(self, slot: Slot) -> None:
        """Return when `slot.outputs` hold the result. Raises EngineError."""

    def close(self) -> None:
        """Free everything. The engine cannot be used afterwards; closing twice is fine."""


def run(engine: Engine, slot: Slot) -> dict[str, NDArray[Any]]:
    """Submit and wait: the slot's outputs."""
    engine.submit(slot)
    engine.wait(slot)
    return slot.outputs


def rows_at_once(engine: Engine, wanted: int) -> int:
    """`wanted`, or fewer where an engine was built for no more (its `max_batch`)."""
    return min(wanted, getattr(engine, "max_batch", wanted))


def allocate(port: Port, batch: int, sizes: Mapping[str, int]) -> NDArray[Any]:
    """A zeroed array for a port. Raises EngineError where a symbolic size has no value."""
    known = {"N": batch, **sizes}
    missing = [size for size in port.shape if isinstance(size, str) and size not in known]
    if missing:
        raise EngineError(
            f"port {port.name}: no value for its size {missing[0]!r}; pass sizes={{{missing[0]!r}: ...}}."
        )
    return np.zeros([known[size] if isinstance(size, str) else size for size in port.shape], port.dtype)
