"""onnxruntime's TensorRT-RTX provider, a plug-in with TensorRT-RTX inside: it compiles when a graph is opened, in seconds.

Nothing is kept on disk; engines that are built ahead and kept are those of `tensorrt-rtx`. It serves GPUs of compute capability 8.6, 8.9 and
12.0 on (its tensorrt_rtx_provider_options.h, 0.5.0).
"""

from __future__ import annotations

import threading
from importlib.util import find_spec
from typing import Any

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.runtime.engines.nvidia import has_gpu
from edgeclip.runtime.engines.onnxruntime_session import first_line, load_onnxruntime, open_session
from edgeclip.runtime.engines.onnxruntime_tensorrt import (
    OnnxRuntimeTensorRT,
    check_reads,
    checked_graph,
    profile_of,
    shapes,
    tell_of_rounding,
)
from edgeclip.runtime.engines.seam import EngineOptions
from edgeclip.runtime.threads import usable_cores

NAME = "onnxruntime-tensorrt-rtx"
PROVIDER = "NvTensorRTRTXExecutionProvider"
PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
INSTALL = "pip install 'onnxruntime>=1.24' onnxruntime-ep-nv-tensorrt-rtx"
NVIDIA = 0x10DE  # the maker's PCI number: how onnxruntime names the buffers of a plug-in's device

_registering = threading.Lock()


def present() -> bool:
    """Whether the plug-in is installed and the machine has an NVIDIA device. Opening may fail all the same."""
    return has_gpu() and find_spec(PACKAGE) is not None


def open_variant(bundle: Bundle, variant: Variant, options: EngineOptions) -> OnnxRuntimeTensorRT:
    """Open one of a bundle's graphs.

    Raises:
        BundleError: a file that changed since the bundle was opened.
        EngineError: no driver, no GPU that it serves, a graph that it does not take whole. MissingExtraError: no plug-in.
    """
    graph = checked_graph(NAME, bundle, variant, options)
    onnxruntime = load_onnxruntime("cpu")
    device = _device(onnxruntime, options.device)
    check_reads(variant, "99")  # numbers are TensorRT's; TensorRT-RTX reads what the newest does
    tell_of_rounding(NAME, variant)
    profile = profile_of(bundle, variant)
    own = shapes(variant, profile, "nv_profile_{}_shapes")
    threads = options.threads or usable_cores()
    session = open_session(
        graph, variant, options, PROVIDER, own, threads, install="cpu", device=device, whole=True
    )
    graphs = options.provider_options.get("enable_cuda_graph", "0") not in ("0", "False")
    bounds = {} if any(key.startswith("nv_profile_") for key in options.provider_options) else profile
    place = ("gpu", options.device, NVIDIA)
    return OnnxRuntimeTensorRT(
        session, variant, threads, place, onnxruntime, name=NAME, bounds=bounds,
        graph_key="cuda_graph_annotation_id" if graphs else "",
    )  # fmt: skip


def _device(onnxruntime: Any, number: int) -> Any:
    """The plug-in's device, after it was made known to onnxruntime, which is done once in a process."""
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise MissingExtraError(f"onnxruntime {onnxruntime.__version__} takes no plug-ins. Run: {INSTALL}")
    with _registering:
        found = _devices(onnxruntime)
        if not found:
            _register(onnxruntime)
            found = _devices(onnxruntime)
    if number >= len(found):
        raise EngineError(
            f"{PROVIDER}: serves {len(found)} GPUs of this machine, want number {number}. It needs compute capability 8.6, "
            "8.9 or 12.0 and newer; see `edgeclip doctor`."
        )
    return found[number]


def _devices(onnxruntime: Any) -> list[Any]:
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]


def _register(onnxruntime: Any) -> None:
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingExtraError(
            f"onnxruntime's TensorRT-RTX provider is not installed ({error}). Run: {INSTALL}"
        ) from error
    try:
        onnxruntime.register_execution_provider_library(PROVIDER, plugin.get_library_path())
    except Exception as error:  # onnxruntime's errors have no common base
        raise EngineError(
            f"{PROVIDER}: does not start ({first_line(error)}). It needs an NVIDIA driver of CUDA 13."
        ) from error
