"""onnxruntime on an NVIDIA GPU: device buffers are kept between calls, and `submit` does not wait for the GPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.manifest import Port, Variant
from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.runtime import cuda, stages
from edgeclip.runtime.engines.nvidia import check_driver, for_cuda, has_gpu, preload
from edgeclip.runtime.engines.onnxruntime_session import (
    first_line,
    load_onnxruntime,
    open_session,
    still_open,
)
from edgeclip.runtime.engines.seam import EngineOptions, Slot, allocate
from edgeclip.runtime.threads import usable_cores

NAME = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"

log = logging.getLogger(__name__)


def present() -> bool:
    """Whether this onnxruntime has CUDA built in and the machine has an NVIDIA device. Opening may fail all the same."""
    return built_in(PROVIDER)


def built_in(provider: str) -> bool:
    """Whether the machine has an NVIDIA device and onnxruntime this provider of it. Never raises."""
    if not has_gpu():
        return False
    try:
        return provider in load_onnxruntime("gpu").get_available_providers()
    except MissingExtraError:
        return False


def load_with(provider: str, options: EngineOptions) -> Any:
    """onnxruntime with this provider built in, and with what CUDA libraries Python packages hold.

    Raises:
        MissingExtraError: it is not, or not installed, or CUDA's own libraries are missing.
        EngineError: no driver, or one older than the CUDA of this onnxruntime (unless `options.allow_fallback`).
    """
    onnxruntime = load_onnxruntime("gpu")
    if provider not in onnxruntime.get_available_providers():
        what = provider.removesuffix("ExecutionProvider").replace("rt", "RT")
        raise MissingExtraError(
            f"this onnxruntime has no {what} provider. Run: pip uninstall -y onnxruntime && pip install 'edgeclip[gpu]'"
        )
    if not options.allow_fallback:
        check_driver(onnxruntime)
    missing = preload(onnxruntime, provider_library(onnxruntime, provider))
    if missing and not options.allow_fallback:
        raise MissingExtraError(
            f"{provider}: {', '.join(missing)} not found. Run: {for_cuda(int(onnxruntime.cuda_version.split('.')[0]))}"
        )
    return onnxruntime


def provider_library(onnxruntime: Any, provider: str) -> Path:
    """The file that a provider which is built in is loaded from; it need not be there."""
    name = provider.removesuffix("ExecutionProvider").lower()
    return Path(onnxruntime.__file__).parent / f"capi/libonnxruntime_providers_{name}.so"


def open_engine(path: Path, variant: Variant, options: EngineOptions) -> OnnxRuntimeCuda:
    """Open a graph. Raises EngineError, or MissingExtraError where onnxruntime has no CUDA."""
    if options.provider_options.get("enable_cuda_graph", "0").lower() in ("1", "true"):
        raise EngineError(
            f"{NAME}: enable_cuda_graph: onnxruntime would replay one call's work on another call's arrays. Leave it out: "
            "tensorrt and tensorrt-rtx record graphs of each call's own."
        )
    onnxruntime = load_with(PROVIDER, options)
    threads = options.threads or usable_cores()
    own = {
        "device_id": str(options.device),
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }  # fp32 means fp32
    session = open_session(path, variant, options, PROVIDER, own, threads, install="gpu")
    # fallen back, and allowed to: then the buffers are the CPU's
    place = ("cuda", options.device) if session.get_providers()[0] == PROVIDER else ("cpu", 0)
    return OnnxRuntimeCuda(session, variant, threads, place, onnxruntime)


class OnnxRuntimeCuda:
    """Each slot owns device buffers beside its host arrays; one call is copy in, run, copy out.

    Args:
        place: where the buffers lie, as OrtValue.ortvalue_from_numpy takes it: device, number, and the maker of a plug-in's device.
    """

    name = NAME
    overlaps = True

    def __init__(
        self, session: Any, variant: Variant, threads: int, place: tuple[Any, ...], onnxruntime: Any
    ) -> None:
        self._session, self.variant, self.threads, self._place = session, variant, threads, place
        self._onnxruntime = onnxruntime
        self.provider: str = session.get_providers()[0]
        # copied at twice the speed, and more on newer buses; without cuda-bindings ordinary memory serves
        self._pins = place[0] == "cuda" and cuda.present()
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def slot(self, batch: int, sizes: Mapping[str, int] | None = None) -> Slot:
        """Arrays for `batch` rows, with buffers on the GPU bound to the session."""
        inputs = {port.name: self._array(port, batch, sizes or {}) for port in self.variant.inputs}
        outputs = {port.name: self._array(port, batch, sizes or {}) for port in self.variant.outputs}
        binding = still_open(self._session, self.variant).io_binding()
        make = self._onnxruntime.OrtValue.ortvalue_from_numpy
        held = {name: make(array, *self._place) for name, array in {**inputs, **outputs}.items()}
        for name in inputs:
            binding.bind_ortvalue_input(name, held[name])
        for name in outputs:
            binding.bind_ortvalue_output(name, held[name])
        return Slot(inputs, outputs, (binding, held))

    def _array(self, port: Port, batch: int, sizes: Mapping[str, int]) -> NDArray[Any]:
        """A zeroed array for a port, in pinned memory where that can be had."""
        array = allocate(port, batch, sizes)
        if self._pins:
            try:
                return cuda.Pinned(self._place[1], array.nbytes).array(array.shape, array.dtype)
            except (EngineError, MissingExtraError) as error:  # which costs time alone
                log.info("%s", error)
                self._pins = False
        return array

    def submit(self, slot: Slot) -> None:
        """Copy the inputs to the GPU and start the work."""
        binding, held = slot.binding
        self._start(slot, binding, held, self._options)

    def wait(self, slot: Slot) -> None:
        """Wait for the GPU and copy the outputs back."""
        self._finish(slot, *slot.binding)

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _start(self, slot: Slot, binding: Any, held: Mapping[str, Any], options: Any) -> None:
        session = still_open(self._session, self.variant)
        with self._one_line():
            begun = stages.begin()
            for name, array in slot.inputs.items():
                held[name].update_inplace(array)
            binding.synchronize_inputs()
            stages.end("copy in", begun)
            session.run_with_iobinding(binding, options)

    def _finish(self, slot: Slot, binding: Any, held: Mapping[str, Any]) -> None:
        with self._one_line():
            binding.synchronize_outputs()
            begun = stages.begin()
            if self._pins:
                with cuda.on(self._place[1]):
                    for name, array in slot.outputs.items():
                        cuda.fetch(array, held[name].data_ptr())
            else:
                for name, array in slot.outputs.items():
                    np.copyto(array, held[name].numpy())
            stages.end("copy out", begun)

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # onnxruntime's errors have no common base
            raise EngineError(
                f"{self.variant.id}: onnxruntime failed to run it ({first_line(error)})."
            ) from error
