"""onnxruntime on an NVIDIA GPU: device buffers are kept between calls, and `submit` does not wait for the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.bundle.manifest import Variant
from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.runtime.engines.onnxruntime_session import first_line, load_onnxruntime, open_session
from edgeclip.runtime.engines.seam import EngineOptions, Slot, allocate
from edgeclip.runtime.threads import usable_cores

NAME = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"


def present() -> bool:
    """Whether this onnxruntime has CUDA built in and the machine has an NVIDIA device. Opening may fail all the same."""
    if not any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")):
        return False
    try:
        return PROVIDER in load_onnxruntime("gpu").get_available_providers()
    except MissingExtraError:
        return False


def open_engine(path: Path, variant: Variant, options: EngineOptions) -> OnnxRuntimeCuda:
    """Open a graph. Raises EngineError, or MissingExtraError where onnxruntime has no CUDA."""
    onnxruntime = load_onnxruntime("gpu")
    if PROVIDER not in onnxruntime.get_available_providers():
        raise MissingExtraError(
            "this onnxruntime has no CUDA provider. Run: pip uninstall -y onnxruntime && pip install 'edgeclip[gpu]'"
        )
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds CUDA and cuDNN in the nvidia-* packages
    threads = options.threads or usable_cores()
    own = {
        "device_id": str(options.device),
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }  # fp32 means fp32
    session = open_session(path, variant, options, PROVIDER, own, threads, install="gpu")
    return OnnxRuntimeCuda(session, variant, threads, options.device, onnxruntime)


class OnnxRuntimeCuda:
    """Each slot owns device buffers beside its host arrays; one call is copy in, run, copy out."""

    name = NAME
    overlaps = True

    def __init__(self, session: Any, variant: Variant, threads: int, device: int, onnxruntime: Any) -> None:
        self._session, self.variant, self.threads, self._device = session, variant, threads, device
        self._onnxruntime = onnxruntime
        self.provider: str = session.get_providers()[0]
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def slot(self, batch: int, sizes: Mapping[str, int] | None = None) -> Slot:
        """Arrays for `batch` rows, with buffers on the GPU bound to the session."""
        inputs = {port.name: allocate(port, batch, sizes or {}) for port in self.variant.inputs}
        outputs = {port.name: allocate(port, batch, sizes or {}) for port in self.variant.outputs}
        binding = self._session.io_binding()
        where = "cuda" if self.provider == PROVIDER else "cpu"  # fallen back, and allowed to
        make = self._onnxruntime.OrtValue.ortvalue_from_numpy
        held = {name: make(array, where, self._device) for name, array in {**inputs, **outputs}.items()}
        for name in inputs:
            binding.bind_ortvalue_input(name, held[name])
        for name in outputs:
            binding.bind_ortvalue_output(name, held[name])
        return Slot(inputs, outputs, (binding, held))

    def submit(self, slot: Slot) -> None:
        """Copy the inputs to the GPU and start the work."""
        binding, held = slot.binding
        try:
            for name, array in slot.inputs.items():
                held[name].update_inplace(array)
            binding.synchronize_inputs()
            self._session.run_with_iobinding(binding, self._options)
        except Exception as error:  # onnxruntime's errors have no common base
            raise EngineError(
                f"{self.variant.id}: onnxruntime failed to run it ({first_line(error)})."
            ) from error

    def wait(self, slot: Slot) -> None:
        """Wait for the GPU and copy the outputs back."""
        binding, held = slot.binding
        try:
            binding.synchronize_outputs()
            for name, array in slot.outputs.items():
                np.copyto(array, held[name].numpy())
        except Exception as error:  # as above
            raise EngineError(
                f"{self.variant.id}: onnxruntime failed to run it ({first_line(error)})."
            ) from error

    def close(self) -> None:
        """Free the session."""
        self._session = None
