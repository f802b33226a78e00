"""One execution context with its buffers: what one thread at a time computes with."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeclip.bundle.manifest import Port
from edgeclip.errors import EngineError
from edgeclip.runtime import cuda, stages
from edgeclip.runtime.engines.tensorrt_place import Place
from edgeclip.runtime.engines.tensorrt_shapes import Shape, concrete

log = logging.getLogger(__name__)


class Lane:
    """Copies in and out on a stream of its own, and work on the place's, tied together by events: copying overlaps computing.

    Args:
        what: the engine, for messages.
        context: of the engine, without memory of its own.
        shape: its profile, and the room of the buffers.
        graphs: record what is queued as a CUDA graph, once the same shape came twice.
    """

    def __init__(
        self,
        what: str,
        context: Any,
        place: Place,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        shape: Shape,
        *,
        graphs: bool,
    ) -> None:
        self._what, self._context, self._place, self._graphs = what, context, place, graphs
        self.inputs, self.outputs = inputs, outputs
        device = place.device
        with cuda.on(device):
            self._stream = cuda.Stream(device)
            self._filled, self._computed = cuda.Event(device), cuda.Event(device)
            self.host = {
                port.name: cuda.Pinned(device, _bytes(port, shape.room)) for port in [*inputs, *outputs]
            }
            self._unified = cuda.unified(device)
            self._memory: Mapping[str, Any] = (
                self.host
                if self._unified
                else {name: cuda.Memory(device, pinned.size) for name, pinned in self.host.items()}
            )
            try:
                context.set_optimization_profile_async(shape.profile, self._stream.handle)
            except RuntimeError as error:  # instead of the False of all its other functions
                raise EngineError(f"TensorRT does not take profile {shape.profile} ({error}).") from error
            if not self._unified:
                # Rows that only pad a call are computed too, and what lies in fresh memory is no token's id: a lookup by it
                # would leave the table, and take the process's GPU with it.
                for port in inputs:
                    self._copy_in(port.name, self.host[port.name].size)
            self._stream.synchronize()
            for name, memory in self._memory.items():
                _done(context.set_tensor_address(name, memory.address))
        self._run: Mapping[str, int] = {}  # sizes that the context is set to
        self._warm = False  # it ran in them
        self._graph: cuda.Graph | None = None
        self._moved = -1  # where the scratch memory was when the context was told

    def submit(self, run: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        """Queue one call.

        Args:
            run: symbolic sizes that the engine runs in.
            sizes: those that the caller filled and will read.
        Raises:
            EngineError: TensorRT or CUDA refused.
        """
        if self._context is None:
            raise EngineError(f"{self._what}: this engine was closed. Open the bundle again.")
        with cuda.on(self._place.device):
            if not self._unified:
                begun = stages.begin()
                for port in self.inputs:
                    self._copy_in(port.name, _bytes(port, sizes))
                self._timed("copy in", begun)
            self._stream.mark(self._filled)
            with self._place.lock:
                self._place.stream.after(self._filled)
                self._compute(run)
                self._place.stream.mark(self._computed)
            self._stream.after(self._computed)
            if not self._unified:
                if stages.listening():
                    self._stream.synchronize()
                begun = stages.begin()
                for port in self.outputs:
                    self._stream.copy_out(
                        self.host[port.name].handle, self._memory[port.name].address, _bytes(port, sizes)
                    )
                self._timed("copy out", begun)

    def wait(self) -> None:
        """Until what was queued is done."""
        if self._context is None:  # `close` waited
            return
        with cuda.on(self._place.device):
            self._stream.synchronize()

    def close(self) -> None:
        """Wait, and free everything but the pinned memory, which somebody's arrays may lie in."""
        if self._context is None:
            return
        try:
            self.wait()
        except EngineError as error:  # the GPU's state is lost; what is freed here is gone already
            log.warning("%s", error)
        with self._place.lock:
            self._context = None
            for thing in (self._graph, self._stream, self._filled, self._computed):
                if thing is not None:
                    thing.free()
            if not self._unified:
                for memory in self._memory.values():
                    memory.free()

    def _timed(self, name: str, begun: int) -> None:
        """Where stages are timed, end the one that was only queued."""
        if begun:
            self._stream.synchronize()
            stages.end(name, begun)

    def _copy_in(self, name: str, size: int) -> None:
        self._stream.copy_in(self._memory[name].address, self.host[name].handle, size)

    def _compute(self, run: Mapping[str, int]) -> None:
        scratch = self._place.scratch
        if self._moved != self._place.moved:
            self._context.set_device_memory(scratch.address, scratch.size)
            # its next run may set up for it what cannot be recorded
            self._moved, self._graph, self._warm = self._place.moved, None, False
        if self._run != run:
            self._run = {}  # until all of it is set. A lane that records is never told a second one
            for port in self.inputs:
                _done(self._context.set_input_shape(port.name, concrete(port, run)))
            self._run = dict(run)
        if self._graph is None and self._graphs and self._warm:
            self._keep()
        if self._graph is not None:
            self._graph.launch(self._place.stream)
        else:
            self._enqueue()  # also sets up what a recording may not: it must come first
            self._warm = True

    def _keep(self) -> None:
        """Record the work."""
        try:
            self._graph = cuda.Graph(self._place.stream, self._enqueue)
        except EngineError as error:
            self._graphs = False
            log.warning(
                "%s: its work cannot be recorded as a CUDA graph and is queued piece by piece (%s)",
                self._what,
                str(error),  # not itself, which holds this lane
            )

    def _enqueue(self) -> None:
        _done(self._context.execute_async_v3(self._place.stream.handle))


def _done(done: bool) -> None:
    if not done:
        raise EngineError("TensorRT failed to run it.")


def _bytes(port: Port, sizes: Mapping[str, int]) -> int:
    return max(1, math.prod(concrete(port, sizes)) * np.dtype(port.dtype).itemsize)
