"""TensorRT-RTX: as TensorRT, with kernels that are compiled on the device."""

from __future__ import annotations

from edgeclip.bundle import Bundle, Variant
from edgeclip.runtime.engines.seam import EngineOptions
from edgeclip.runtime.engines.tensorrt import is_present, open_built
from edgeclip.runtime.engines.tensorrt_engine import TensorRt
from edgeclip.runtime.tensorrt.store import store_of

NAME = "tensorrt-rtx"


def present() -> bool:
    """Whether the library, cuda-bindings and an NVIDIA device are here. Starts nothing, so that a process may still fork."""
    return is_present(NAME)


def local_variants(bundle: Bundle, options: EngineOptions) -> list[Variant]:
    """What engines were built for, newest first. Reads records only. Never raises."""
    return store_of(bundle, options).local_variants(name=NAME)


def open_variant(bundle: Bundle, variant: Variant, options: EngineOptions) -> TensorRt:
    """Open the newest engine of a variant; see `open_built`."""
    return open_built(NAME, bundle, variant, options)
