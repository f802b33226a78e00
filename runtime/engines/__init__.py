"""The engine seam: one graph of one bundle, opened on one kind of device.

    engine = open_engine("onnxruntime-cpu", path, variant, EngineOptions())
    slot = engine.slot(8)               # named, preallocated arrays
    slot.inputs["pixels"][:5] = ...     # preprocessing writes straight into them
    engine.submit(slot)                 # may return before the work is done
    engine.wait(slot)                   # now slot.outputs hold the result

An engine is one file with an `open_engine(path, variant, options)` and one line in `ENGINES`; it is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from edgeclip.bundle.manifest import Variant
from edgeclip.errors import EngineError
from edgeclip.runtime.engines.seam import Engine, EngineOptions, Slot, run

ENGINES: Mapping[str, str] = {
    "onnxruntime-cpu": "edgeclip.runtime.engines.onnxruntime_cpu",
    "onnxruntime-cuda": "edgeclip.runtime.engines.onnxruntime_cuda",
}

__all__ = ["ENGINES", "Engine", "EngineOptions", "Slot", "default_engine", "open_engine", "run"]


def open_engine(name: str, path: Path, variant: Variant, options: EngineOptions | None = None) -> Engine:
    """Open a graph.

    Args:
        name: an entry of `ENGINES`.
        path: the graph's file, from a bundle whose files have been checked.
        variant: what the bundle says of that graph.
        options: threads, memory, provider options.
    Raises:
        EngineError: no such engine, a graph that it cannot open, or a silent fall-back to another provider.
        MissingExtraError: the engine's package is not installed; the message holds the command.
    """
    if name not in ENGINES:
        raise EngineError(f"engine {name!r}: no such engine. Choose one of {', '.join(ENGINES)}.")
    engine: Engine = import_module(ENGINES[name]).open_engine(path, variant, options or EngineOptions())
    return engine


def default_engine() -> str:
    """The best engine that is likely to open here: CUDA where this onnxruntime and this machine have it, else the CPU."""
    from edgeclip.runtime.engines import onnxruntime_cuda

    return "onnxruntime-cuda" if onnxruntime_cuda.present() else "onnxruntime-cpu"
