"""A TensorRT engine that runs: profiles, lanes and slots. Both libraries, which share their classes."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgeclip.bundle.manifest import Port, Variant
from edgeclip.errors import EngineError
from edgeclip.runtime import cuda
from edgeclip.runtime.engines.seam import EngineOptions, Slot
from edgeclip.runtime.engines.tensorrt_lane import Lane
from edgeclip.runtime.engines.tensorrt_place import place_on
from edgeclip.runtime.engines.tensorrt_shapes import Shape, Shapes, concrete
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.messages import in_words, listening
from edgeclip.runtime.tensorrt.record import Profile
from edgeclip.runtime.threads import usable_cores

IDLE_LANES = 4  # kept for the next call beside those that slots hold; each has a context and buffers

_TYPES = {
    "float32": "FLOAT", "float16": "HALF", "int32": "INT32", "int64": "INT64", "uint8": "UINT8", "bool": "BOOL",
}  # fmt: skip

log = logging.getLogger(__name__)


class TensorRt:
    """See Engine. Slots hold pinned memory; `submit` queues copies and work and returns.

    Args:
        engine: deserialised, of the library's module.
        runtime: what deserialised it; lives as long.
        configure: settings of its contexts, where the library has such; None: none.
        graphs: record what is queued as CUDA graphs, where shapes repeat.
    Raises:
        EngineError: the engine is not what the manifest says, or there is no room for it.
    """

    overlaps = True

    def __init__(
        self, library: Library, variant: Variant, options: EngineOptions, engine: Any, runtime: Any, *,
        configure: Any = None, graphs: bool = True,
    ) -> None:  # fmt: skip
        self.name, self.variant, self.device = library.name, variant, options.device
        self.provider = str(library)
        self.threads = options.threads or usable_cores()
        self.engine, self._library, self._runtime, self._configure = engine, library, runtime, configure
        _check_ports(variant, engine)
        self._shapes = Shapes(variant.id, _profiles(variant, engine))
        self.max_batch = self._shapes.max_batch  # rows of the largest call
        self._graphs = graphs and self._shapes.fixed
        self._lock = threading.Lock()
        self._idle: list[tuple[tuple[Any, ...], Lane]] = []  # least recently used first
        self._back: deque[tuple[tuple[Any, ...], Lane]] = (
            deque()
        )  # of slots that are gone; filled by their end
        self._lanes: weakref.WeakSet[Lane] = weakref.WeakSet()
        self._place = place_on(options.device)
        self._place.enter(int(engine.device_memory_size_v2))
        self._leave = weakref.finalize(self, self._place.leave)  # also of an engine that nobody closes
        self._leave.atexit = False
        self.on_close: Callable[[], None] | None = None  # called once, when its work has ended
        self._closed = False

    def slot(self, batch: int, sizes: Mapping[str, int] | None = None) -> Slot:
        """Pinned arrays for `batch` rows, with what it takes to run them. Raises EngineError beyond the engine's profiles."""
        wanted = {"N": batch, **(sizes or {})}
        for port in self.variant.inputs:
            concrete(port, wanted)  # refuses a size that was not given
        shape = self._shapes.choose({name: wanted[name] for name in self._shapes.profiles[0]})
        key = (shape.profile, *sorted(shape.room.items()))
        with cuda.on(self._place.device), self._speaking():
            lane = self._lane(key, shape)
        end = _End()
        weakref.finalize(end, self._back.append, (key, lane)).atexit = False

        def arrays(ports: tuple[Port, ...]) -> dict[str, Any]:
            return {
                port.name: lane.host[port.name].array(concrete(port, wanted), port.dtype, end)
                for port in ports
            }

        return Slot(arrays(self.variant.inputs), arrays(self.variant.outputs), (lane, shape.run, wanted, end))

    def submit(self, slot: Slot) -> None:
        """Queue copies and work; the CPU is free again at once."""
        lane, run, wanted, _ = slot.binding
        with self._speaking():
            lane.submit(run, wanted)

    def wait(self, slot: Slot) -> None:
        """Until the slot's outputs hold the result. Other threads go on meanwhile."""
        with self._speaking():
            slot.binding[0].wait()

    def close(self) -> None:
        """Wait for what is queued and free everything. Arrays of slots stay readable."""
        with cuda.on(self._place.device), self._lock:
            if self._closed:
                return
            self._closed = True
            for lane in list(self._lanes):
                lane.close()
            if self.on_close is not None:
                self.on_close()
            self._idle.clear()
            self._back.clear()
            # what was made from the engine first: TensorRT does not count who still uses whom
            self.on_close = self._configure = None
            self.engine = None
            self._runtime = None
            self._leave()

    def _lane(self, key: tuple[Any, ...], shape: Shape) -> Lane:
        """One that nobody holds, or a new one."""
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.variant.id}: this engine was closed. Open the bundle again.")
            while self._back:
                self._idle.append(self._back.popleft())
            found = next((i for i in reversed(range(len(self._idle))) if self._idle[i][0] == key), None)
            lane = self._idle.pop(found)[1] if found is not None else None
            for _, old in self._idle[:-IDLE_LANES]:
                old.close()
            del self._idle[:-IDLE_LANES]
            if lane is None:
                lane = Lane(
                    self.variant.id, self._context(), self._place, self.variant.inputs, self.variant.outputs, shape, graphs=self._graphs
                )  # fmt: skip
                self._lanes.add(lane)
        return lane

    def _context(self) -> Any:
        """An execution context without scratch memory of its own."""
        strategy = self._library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.engine.create_execution_context(
            strategy if self._configure is None else self._configure
        )
        if context is None:
            raise EngineError("no execution context")
        return context

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """With this engine's name, and TensorRT's own words, in the message."""
        with listening() as heard:
            try:
                yield
            except EngineError as error:
                said = f" {in_words(heard, 'See `edgeclip doctor`.')}" if heard else ""
                name = "" if str(error).startswith(self.variant.id) else f"{self.variant.id}: "
                raise EngineError(f"{name}{error}{said}") from error


class _End:
    """Dies with the last of a slot's arrays."""


def _check_ports(variant: Variant, engine: Any) -> None:
    """Buffers are sized by the manifest, so the engine must agree with it before a byte is copied."""
    found = {engine.get_tensor_name(i): i for i in range(engine.num_io_tensors)}
    ports = [*variant.inputs, *variant.outputs]
    if set(found) != {port.name for port in ports}:
        raise EngineError(
            f"{variant.id}: the engine has {sorted(found)}, the manifest lists {[port.name for port in ports]}."
        )
    for port in ports:
        kind = engine.get_tensor_dtype(port.name).name
        shape = tuple(engine.get_tensor_shape(port.name))
        same = len(shape) == len(port.shape) and all(
            isinstance(wanted, str) or size == wanted for size, wanted in zip(shape, port.shape, strict=True)
        )
        side = "INPUT" if port in variant.inputs else "OUTPUT"
        if kind != _TYPES[port.dtype] or not same or engine.get_tensor_mode(port.name).name != side:
            raise EngineError(
                f"{variant.id}: {side.lower()} {port.name!r}: the manifest says {port.dtype} {port.shape}, the engine "
                f"has {kind.lower()} {shape}. Build it again: edgeclip build --rebuild"
            )


def _profiles(variant: Variant, engine: Any) -> list[Profile]:
    """What the engine says that it was built for."""
    found: list[Profile] = [{} for _ in range(engine.num_optimization_profiles)]
    for number, profile in enumerate(found):
        for port in variant.inputs:
            least, best, most = engine.get_tensor_profile_shape(port.name, number)
            for axis, size in enumerate(port.shape):
                if isinstance(size, str):
                    profile[size] = (least[axis], best[axis], most[axis])
    return found
