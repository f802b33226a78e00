"""The engine seam: one graph of one bundle, opened on one kind of device.

    engine = open_variant("onnxruntime-cpu", bundle, variant, EngineOptions())
    slot = engine.slot(8)               # named, preallocated arrays
    slot.inputs["pixels"][:5] = ...     # preprocessing writes straight into them
    engine.submit(slot)                 # may return before the work is done
    engine.wait(slot)                   # now slot.outputs hold the result

An engine is one file and one line in `ENGINES`; it is imported when it is used. The file has `present()`, cheap and never raising, and either
 open_engine(path, variant, options)      an engine that reads graphs, or
 open_variant(bundle, variant, options)   one that keeps something for a bundle; if that is built ahead it also has
 local_variants(bundle, options)          the variants that it was built for, which the bundle need not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from edgeclip.bundle import Bundle, Variant
from edgeclip.bundle.store import check_again
from edgeclip.errors import EngineError
from edgeclip.runtime.engines.nvidia import has_gpu
from edgeclip.runtime.engines.seam import Engine, EngineOptions, Slot, rows_at_once, run

ENGINES: Mapping[str, str] = {
    "onnxruntime-cpu": "edgeclip.runtime.engines.onnxruntime_cpu",
    "onnxruntime-cuda": "edgeclip.runtime.engines.onnxruntime_cuda",
    "tensorrt": "edgeclip.runtime.engines.tensorrt",
    "tensorrt-rtx": "edgeclip.runtime.engines.tensorrt_rtx",
    "onnxruntime-tensorrt": "edgeclip.runtime.engines.onnxruntime_tensorrt",
    "onnxruntime-tensorrt-rtx": "edgeclip.runtime.engines.onnxruntime_tensorrt_rtx",
}

# Without a wish the first of these that opens is taken, and said; all but the last need an NVIDIA GPU. onnxruntime's TensorRT providers are not among them: opening a graph
# for the first time takes them minutes.
ORDER = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")

__all__ = [
    "ENGINES",
    "Engine",
    "EngineOptions",
    "Slot",
    "default_engine",
    "engine_order",
    "local_variants",
    "open_engine",
    "open_variant",
    "rows_at_once",
    "run",
]


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
    module = _module(name)
    if not hasattr(module, "open_engine"):
        raise EngineError(
            f"{path}: {name} opens a bundle, not a graph alone. Pass the bundle to open_variant."
        )
    engine: Engine = module.open_engine(path, variant, options or EngineOptions())
    return engine


def open_variant(name: str, bundle: Bundle, variant: Variant, options: EngineOptions | None = None) -> Engine:
    """Open one of a bundle's graphs, looked at once more just before, or what was built from it.

    Raises:
        BundleError: a file that changed since the bundle was opened.
        EngineError, MissingExtraError: as `open_engine`; or nothing was built for this device.
    """
    module = _module(name)
    if hasattr(module, "open_engine"):
        check_again(bundle, variant)
        return open_engine(name, bundle.path(variant.files[0]), variant, options)
    engine: Engine = module.open_variant(bundle, variant, options or EngineOptions())
    return engine


def local_variants(name: str, bundle: Bundle, options: EngineOptions) -> list[Variant]:
    """What an engine was built for on this machine, preferred first; [] for one that reads graphs. Never raises."""
    find = getattr(_module(name), "local_variants", None)
    return [] if find is None else find(bundle, options)


def engine_order(wanted: str | Sequence[str] | None) -> tuple[str, ...]:
    """What to try, in this order. None: what is likely to open here, the CPU last. Raises EngineError for an unknown name."""
    if wanted is None:
        if not has_gpu():  # nobody need be asked: importing them to do so would cost 50 ms
            return ORDER[-1:]
        return tuple(name for name in ORDER if name == ORDER[-1] or _module(name).present())
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    for name in names:
        _module(name)
    return names


def default_engine() -> str:
    """The best engine that is likely to open here."""
    return engine_order(None)[0]


def _module(name: str) -> ModuleType:
    if name not in ENGINES:
        raise EngineError(f"engine {name!r}: no such engine. Choose one of {', '.join(ENGINES)}.")
    return import_module(ENGINES[name])
