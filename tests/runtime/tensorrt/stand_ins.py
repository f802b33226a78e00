"""Put the stand-ins where the code imports CUDA and TensorRT from, and engines for them into a store."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import onnx
import pytest

from edgeclip.bundle import Bundle, Variant
from edgeclip.runtime import cuda
from edgeclip.runtime.engines import EngineOptions, tensorrt_place
from edgeclip.runtime.tensorrt import messages
from edgeclip.runtime.tensorrt.library import load_library
from edgeclip.runtime.tensorrt.record import BuildOptions, Record, place
from edgeclip.runtime.tensorrt.store import store_of
from tests.runtime.tensorrt.cuda_stand_in import StandIn
from tests.runtime.tensorrt.kept import record_of
from tests.runtime.tensorrt.tensorrt_stand_in import module, plan_of

Spans = Mapping[str, tuple[int, int, int]]
IMAGE: Sequence[Spans] = ({"N": (1, 8, 32)},)
TEXT: Sequence[Spans] = ({"N": (1, 8, 32), "L": (1, 8, 12)},)


def install(patch: pytest.MonkeyPatch, **facts: Any) -> StandIn:
    """A machine with stand-in GPUs (see StandIn), CUDA and both TensorRTs."""
    stand_in = StandIn(**facts)
    package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    bindings.runtime, bindings.driver = stand_in, stand_in.driver  # type: ignore[attr-defined]
    for name, found in (
        ("cuda", package), ("cuda.bindings", bindings), ("tensorrt", module(stand_in)), ("tensorrt_rtx", module(stand_in, rtx=True)),
    ):  # fmt: skip
        patch.setitem(sys.modules, name, found)
    patch.setattr(cuda, "present", lambda: True)
    patch.setattr(cuda, "_used_by", 0)
    patch.setattr(tensorrt_place, "_places", {})
    patch.setattr(messages, "_loggers", {})
    cuda._devices.cache_clear()
    cuda.unified.cache_clear()
    return stand_in


def forget() -> None:
    """What the code remembers of a machine."""
    cuda._devices.cache_clear()
    cuda.unified.cache_clear()


def build(
    bundle: Bundle, variant: Variant, profiles: Sequence[Spans], library: str = "tensorrt", *, proven: bool = True,
    graph: bytes | None = None, options: EngineOptions | None = None, changes: Mapping[str, Any] | None = None, **plan: Any,
) -> Record:  # fmt: skip
    """Keep an engine for the first GPU of this machine.

    Args:
        graph: that it computes; None: the variant's.
        changes: to its options.
        plan: see `plan_of`.
    """
    version, device = load_library(library).version, replace(cuda.devices()[0])
    record = record_of(
        bundle,
        variant=variant,
        graphs={name: bundle.manifest.files[name].sha256 for name in variant.files},
        library=library,
        version=version,
        device=device,
        proved_on=place(version, device),
        options=BuildOptions(tuple(dict(spans) for spans in profiles), **(changes or {})),
    )
    if not proven:
        record = replace(record, fidelity=None, engine=None)
    data = graph if graph is not None else bundle.path(variant.files[0]).read_bytes()
    if graph is None and len(variant.files) > 1:  # a plan holds its weights
        data = onnx.load(bundle.path(variant.files[0])).SerializeToString()
    return store_of(bundle, options or EngineOptions()).put(
        record, plan_of(data, [dict(p) for p in profiles], **plan)
    )
