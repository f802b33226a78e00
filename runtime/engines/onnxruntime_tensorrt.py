"""onnxruntime's TensorRT provider: it builds an engine when a graph is opened, minutes the first time, and keeps it.

Whatever lies in its cache folder it deserialises, and engines are code: the folder is sealed (`runtime/tensorrt/sealed.py`), and named after
all that the engine depends on, for onnxruntime itself looks neither at the weights nor at the versions. Precision stands in the
graph: none of its weak-typing switches (trt_fp16_enable, ...) is ever set.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgeclip.bundle import Bundle, Variant
from edgeclip.bundle.store import check_again
from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.runtime.engines.nvidia import linked, load_tensorrt
from edgeclip.runtime.engines.onnxruntime_cuda import OnnxRuntimeCuda, built_in, load_with, provider_library
from edgeclip.runtime.engines.onnxruntime_session import open_session, version_of
from edgeclip.runtime.engines.seam import UNCOUNTED, EngineOptions, Slot
from edgeclip.runtime.tensorrt.record import Profile
from edgeclip.runtime.threads import usable_cores

NAME = "onnxruntime-tensorrt"
PROVIDER = "TensorrtExecutionProvider"
TF32 = "NVIDIA_TF32_OVERRIDE"  # read by NVIDIA's libraries when they are loaded
BATCHES = (1, 8, 32)  # least, best and most rows of a call; provider options set others


log = logging.getLogger(__name__)


def present() -> bool:
    """Whether this onnxruntime has the provider and the machine an NVIDIA device. Opening may fail all the same."""
    return built_in(PROVIDER)


def open_variant(bundle: Bundle, variant: Variant, options: EngineOptions) -> OnnxRuntimeTensorRT:
    """Open one of a bundle's graphs.

    Raises:
        BundleError: a file that changed since the bundle was opened.
        EngineError: a graph that this TensorRT does not take whole. MissingExtraError: no provider, or no TensorRT.
    """
    from edgeclip.runtime.tensorrt.guard import make_private
    from edgeclip.runtime.tensorrt.sealed import sealed
    from edgeclip.runtime.tensorrt.store import store_of

    graph = checked_graph(NAME, bundle, variant, options)
    onnxruntime = load_with(PROVIDER, options)
    version = load_tensorrt(_major(onnxruntime))
    check_reads(variant, version)
    tell_of_rounding(NAME, variant)
    profile = profile_of(bundle, variant)
    own = {"device_id": str(options.device), **shapes(variant, profile, "trt_profile_{}_shapes")}
    facts = [onnxruntime.__version__, version, own, dict(options.provider_options), os.environ.get(TF32)]
    store = store_of(bundle, options).folder
    make_private(store)  # whoever may write there could put another folder in this one's place
    folder = store / "onnxruntime" / _name(bundle, variant, facts)
    threads = options.threads or usable_cores()
    with sealed(folder):  # with every size in a profile it builds here, not at the first call
        caches = {
            f"trt_{kind}_cache_{what}": value
            for kind in ("engine", "timing")
            for what, value in (("enable", "1"), ("path", str(folder)))
        }
        session = open_session(
            graph, variant, options, PROVIDER, {**own, **caches}, threads, install="gpu", whole=True
        )
    graphs = options.provider_options.get("trt_cuda_graph_enable", "0") not in ("0", "False")
    bounds = {} if any(key.startswith("trt_profile_") for key in options.provider_options) else profile
    place = ("cuda", options.device)
    return OnnxRuntimeTensorRT(
        session, variant, threads, place, onnxruntime, name=NAME, bounds=bounds, graph_key="gpu_graph_id" if graphs else ""
    )  # fmt: skip


def checked_graph(name: str, bundle: Bundle, variant: Variant, options: EngineOptions) -> Path:
    """A variant's graph, looked at once more, without any engine that this machine did not build.

    Raises:
        BundleError: a file that changed since the bundle was opened.
        EngineError: it holds an engine, or a provider option names a folder of engines.
    """
    if named := [key for key in options.provider_options if key.endswith("cache_path")]:
        raise EngineError(
            f"{name}: {named[0]}: engines are code, and those of a folder without a seal may be anybody's. Leave it out."
        )
    check_again(bundle, variant)
    path = bundle.path(variant.files[0])
    if b"EPContext" in path.read_bytes():  # the operator by which onnxruntime is handed a ready engine
        raise EngineError(
            f"{path}: holds an engine that was built elsewhere (operator EPContext), and engines are code. Export the model again."
        )
    return path


def check_reads(variant: Variant, version: str) -> None:
    """Refuse a graph that this TensorRT cannot read, before it is read. Raises EngineError."""
    oldest = variant.requires.get("tensorrt", "0")
    if oldest == "none":
        raise EngineError(
            f"{variant.id}: holds operators that TensorRT does not read. Use another variant or engine."
        )
    if version_of(version) < version_of(oldest):
        raise EngineError(
            f"{variant.id}: is read from TensorRT {oldest} on, this is {version}. Use another variant."
        )


def tell_of_rounding(name: str, variant: Variant) -> None:
    """onnxruntime has no option for what our own builder switches off: TensorRT lets products in fp32 round to TF32."""
    if variant.computes_in == "fp32" and os.environ.get(TF32) != "0":
        log.warning(
            "%s: %s may round its fp32 products to 10 bits (TF32); %s=0 in the environment forbids it",
            variant.id, name, TF32, extra=UNCOUNTED,
        )  # fmt: skip


def profile_of(bundle: Bundle, variant: Variant) -> Profile:
    """The sizes that an engine is built for; {}: none is free."""
    from edgeclip.runtime.tensorrt.profiles import profiles_for

    return next(iter(profiles_for(variant, bundle.manifest, (BATCHES,))), {})


def shapes(variant: Variant, profile: Profile, option: str) -> dict[str, str]:
    """A profile as onnxruntime takes it, e.g. {"trt_profile_min_shapes": "pixels:1x3x224x224", ...}. {}: no size is free."""
    free = [port for port in variant.inputs if any(isinstance(size, str) for size in port.shape)]
    if not free:
        return {}

    def text(which: int) -> str:
        sizes = (
            (port.name, [profile[s][which] if isinstance(s, str) else s for s in port.shape]) for port in free
        )
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in sizes)

    return {option.format(word): text(which) for which, word in enumerate(("min", "opt", "max"))}


class OnnxRuntimeTensorRT(OnnxRuntimeCuda):
    """As on CUDA, except that one thread of its own makes all calls, copies included: TensorRT's providers do not say when they wait.

    Args:
        name: its entry in ENGINES.
        bounds: sizes that it takes, {} for any.
        graph_key: run option that names a CUDA graph, "" for none: each slot has its own, for a graph holds the slot's addresses.
    """

    def __init__(self, *arguments: Any, name: str, bounds: Profile, graph_key: str = "") -> None:
        super().__init__(*arguments)
        self.name, self._bounds, self._graph_key = name, bounds, graph_key
        if "N" in bounds:
            self.max_batch = bounds["N"][2]  # whoever has more rows makes several calls
        self._graphs = itertools.count(1)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=name)

    def slot(self, batch: int, sizes: Mapping[str, int] | None = None) -> Slot:
        """Arrays for `batch` rows, with buffers on the GPU bound to the session. Raises EngineError for what no engine was built for."""
        for size, value in {"N": batch, **(sizes or {})}.items():
            least, _, most = self._bounds.get(size, (value, value, value))
            if not least <= value <= most:
                raise EngineError(
                    f"{self.variant.id}: {size} = {value}, {self.name} was opened for {least} to {most}. Use a smaller "
                    "batch_size, or set other shapes in EngineOptions.provider_options."
                )
        slot = super().slot(batch, sizes)
        options = self._onnxruntime.RunOptions()  # waits for the device before it returns
        if self._graph_key:
            options.add_run_config_entry(self._graph_key, str(next(self._graphs)))
        binding, held = slot.binding
        slot.binding = _Work(binding, held, options)
        return slot

    def submit(self, slot: Slot) -> None:
        """Hand the call to the engine's thread."""
        slot.binding.running = self._worker.submit(self._call, slot, slot.binding)

    def wait(self, slot: Slot) -> None:
        """Wait for that thread. Raises EngineError for what went wrong there."""
        slot.binding.running.result()

    def close(self) -> None:
        """Finish what was submitted, then free the session."""
        self._worker.shutdown()
        super().close()

    def _call(self, slot: Slot, work: _Work) -> None:
        self._start(slot, work.binding, work.held, work.options)
        self._finish(slot, work.binding, work.held)


class _Work:
    """What one slot holds."""

    def __init__(self, binding: Any, held: Mapping[str, Any], options: Any) -> None:
        self.binding, self.held, self.options = binding, held, options
        self.running: Future[None]


def _major(onnxruntime: Any) -> int:
    """Of the TensorRT that this onnxruntime was linked with."""
    library = provider_library(onnxruntime, PROVIDER)
    found = linked(library, "nvinfer") if library.exists() else None
    if found is None:
        raise MissingExtraError(
            f"onnxruntime {onnxruntime.__version__} has no TensorRT provider in {library}. Run: pip install 'edgeclip[gpu]'"
        )
    return found


def _name(bundle: Bundle, variant: Variant, facts: list[Any]) -> str:
    """A folder's name that differs whenever the engine would."""
    digests = [bundle.manifest.files[name].sha256 for name in variant.files]
    text = json.dumps([digests, *facts], sort_keys=True)
    return f"{variant.id}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
