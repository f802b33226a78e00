"""onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeclip.bundle.manifest import Variant
from edgeclip.errors import EngineError
from edgeclip.runtime.cpu import BYTE_SUMS, saturates
from edgeclip.runtime.engines.onnxruntime_session import first_line, open_session, still_open
from edgeclip.runtime.engines.seam import EngineOptions, Slot, allocate
from edgeclip.runtime.threads import usable_cores

NAME = "onnxruntime-cpu"
PROVIDER = "CPUExecutionProvider"


def present() -> bool:
    """Whether onnxruntime is installed."""
    return find_spec("onnxruntime") is not None


def open_engine(path: Path, variant: Variant, options: EngineOptions) -> OnnxRuntimeCpu:
    """Open a graph. Raises EngineError, or MissingExtraError without onnxruntime."""
    if variant.requires.get(BYTE_SUMS) == "wide" and saturates():
        raise EngineError(
            f"{variant.id}: its bytes were made for processors that sum their products in 32 bits (VNNI); here they would "
            "saturate. Compress the bundle for this processor."
        )
    threads = options.threads or usable_cores()
    session = open_session(path, variant, options, PROVIDER, {}, threads, install="cpu")
    return OnnxRuntimeCpu(session, variant, threads)


class OnnxRuntimeCpu:
    """The arrays of a slot are bound once; each call then reads and writes them without a copy or an allocation."""

    name = NAME
    overlaps = False

    def __init__(self, session: Any, variant: Variant, threads: int) -> None:
        self._session, self.variant, self.threads = session, variant, threads
        self.provider: str = session.get_providers()[0]

    def slot(self, batch: int, sizes: Mapping[str, int] | None = None) -> Slot:
        """Arrays for `batch` rows, bound to the session."""
        inputs = {port.name: allocate(port, batch, sizes or {}) for port in self.variant.inputs}
        outputs = {port.name: allocate(port, batch, sizes or {}) for port in self.variant.outputs}
        binding = still_open(self._session, self.variant).io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return Slot(inputs, outputs, binding)

    def submit(self, slot: Slot) -> None:
        """Does all the work: a second thread would only take cores from it."""
        session = still_open(self._session, self.variant)
        try:
            session.run_with_iobinding(slot.binding)
        except Exception as error:  # onnxruntime's errors have no common base
            raise EngineError(
                f"{self.variant.id}: onnxruntime failed to run it ({first_line(error)})."
            ) from error

    def wait(self, slot: Slot) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """Free the session."""
        self._session = None
