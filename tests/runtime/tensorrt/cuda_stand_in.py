"""A stand-in for `cuda.bindings.runtime` without a GPU: it holds what CUDA promises, and nothing beyond.

Streams are queues that nobody works off until somebody synchronises. Then, in turn, either only what that needs is done, or first of
all whatever else does not wait for an event. So a missing event gives wrong numbers here, always, and not once a month as on a GPU.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np


class Error(enum.IntEnum):
    """cudaError_t, as far as it is needed."""

    SUCCESS = 0
    INVALID_VALUE = 1
    OUT_OF_MEMORY = 2
    INVALID_DEVICE = 101
    INVALID_HANDLE = 400
    ILLEGAL_ADDRESS = 700
    CAPTURE_UNSUPPORTED = 900
    CAPTURE_INVALIDATED = 901


class Failed(Exception):
    """A function's error."""

    def __init__(self, code: Error) -> None:
        super().__init__(code.name)
        self.code = code


@dataclass
class Work:
    """One thing in a queue."""

    do: Callable[[], None]
    touches: tuple[int, ...] = ()  # addresses
    ready: Callable[[], bool] = lambda: True  # whether it need not wait


@dataclass
class Queue:
    """A stream."""

    device: int
    work: deque[Work] = field(default_factory=deque)
    captured: list[Work] | None = None  # not None: it records
    spoilt: bool = False  # something came that cannot be recorded


@dataclass
class Mark:
    """An event."""

    device: int
    serial: int = 0  # of its last record; 0: none
    done: int = 0  # the last one that was reached
    stream: int = 0


class StandIn:
    """The module. `memory` is what each GPU has, bytes; `unified`: CPU and GPU share it."""

    cudaHostAllocDefault, cudaHostAllocPortable, cudaHostAllocMapped = 0, 1, 2
    cudaStreamNonBlocking, cudaEventDisableTiming = 1, 2
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrIntegrated=18)

    def __init__(self, gpus: int = 1, memory: int = 1 << 30, unified: bool = False) -> None:
        self.gpus, self.memory, self.unified = gpus, memory, unified
        self.device: dict[int, tuple[Any, int]] = {}  # live memory of GPUs: address -> (bytes, GPU)
        self.host: dict[int, Any] = {}  # live pinned memory
        self.streams: dict[int, Queue] = {}
        self.events: dict[int, Mark] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.faults: list[str] = []  # what a GPU would not tell, and nobody should do
        self.calls: dict[str, int] = {}
        self.lock = threading.RLock()
        self._handles = iter(range(1, 1 << 30))
        self._current = threading.local()
        self.in_use: set[int] = set()  # GPUs that were set up, each at some cost
        self.hasty: bool | None = None  # whether other work is done first; None: in turn
        self._turn = False

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(found):
            return found

        def function(*arguments: Any) -> tuple[Any, ...]:
            with self.lock:
                self.calls[name] = self.calls.get(name, 0) + 1
                try:
                    result = found(*arguments)
                except Failed as error:
                    return (error.code, *([None] if name in RETURNS else []))
            return (
                Error.SUCCESS,
                *(result if isinstance(result, tuple) else () if result is None else (result,)),
            )

        return function

    # --- what is here

    def cudaGetErrorString(self, error: Error) -> bytes:
        return Error(error).name.lower().replace("_", " ").encode()

    def cudaGetLastError(self) -> None: ...

    def cudaDriverGetVersion(self) -> int:
        return 12060

    def cudaGetDeviceCount(self) -> int:
        return self.gpus

    def cudaGetDeviceProperties(self, device: int) -> Any:
        return SimpleNamespace(
            name=f"NVIDIA Stand-in {device}".encode(), major=8, minor=6, totalGlobalMem=self.memory
        )

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> int:
        assert attribute == 18
        return int(self.unified)

    def cudaGetDevice(self) -> int:
        return int(getattr(self._current, "device", 0))

    def cudaSetDevice(self, device: int) -> None:
        if device not in range(self.gpus):
            raise Failed(Error.INVALID_DEVICE)
        self._current.device = device
        self.in_use.add(device)

    @property
    def driver(self) -> Any:
        """`cuda.bindings.driver`."""
        return SimpleNamespace(cuDevicePrimaryCtxGetState=lambda device: (0, 0, int(device in self.in_use)))

    # --- memory

    def cudaMemGetInfo(self) -> tuple[int, int]:
        used = sum(len(data) for data, device in self.device.values() if device == self._here())
        return self.memory - used, self.memory

    def cudaMalloc(self, size: int) -> int:
        self._refuse_while_recording()
        if size > self.cudaMemGetInfo()[1]:
            raise Failed(Error.OUT_OF_MEMORY)
        data = np.full(size + 256, 0xAB, np.uint8)  # not zeros: nobody may count on them
        address = -(-data.ctypes.data // 256) * 256
        self.device[address] = (data, self._here())
        return address

    def cudaFree(self, address: int) -> None:
        self._refuse_while_recording()
        self._unused(address)
        if self.device.pop(address, None) is None:
            raise Failed(Error.INVALID_VALUE)

    def cudaHostAlloc(self, size: int, flags: int) -> int:
        if size > self.memory:
            raise Failed(Error.OUT_OF_MEMORY)
        data = np.full(size, 0xCD, np.uint8)
        self.host[data.ctypes.data] = data
        return int(data.ctypes.data)

    def cudaHostGetDevicePointer(self, address: int, flags: int) -> int:
        return address

    def cudaFreeHost(self, address: int) -> None:
        self._unused(address)
        if self.host.pop(address, None) is None:
            raise Failed(Error.INVALID_VALUE)

    # --- streams and events

    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        return self._keep(self.streams, Queue(self._here()))

    def cudaStreamDestroy(self, stream: int) -> None:
        if self.streams.pop(stream).work:
            self.faults.append(f"stream {stream} was destroyed with work in it")

    def cudaEventCreateWithFlags(self, flags: int) -> int:
        return self._keep(self.events, Mark(self._here()))

    def cudaEventDestroy(self, event: int) -> None:
        del self.events[event]

    def cudaEventRecord(self, event: int, stream: int) -> None:
        mark = self.events[event]
        if mark.device != self._stream(stream).device:
            raise Failed(Error.INVALID_HANDLE)
        mark.serial, mark.stream = mark.serial + 1, stream
        self.queue(stream, lambda serial=mark.serial: setattr(mark, "done", serial))

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        mark = self.events[event]
        serial = mark.serial

        def reached() -> bool:
            return mark.done >= serial

        self.queue(stream, lambda: self._drain(mark.stream, reached), ready=reached)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        device, host = (target, source) if kind == 1 else (source, target)

        def copy() -> None:
            self.check(device, size)
            if kind == 3:
                self.check(host, size)
            elif host not in self.host or size > len(self.host[host]):
                raise Failed(Error.ILLEGAL_ADDRESS)
            ctypes.memmove(target, source, size)

        self.queue(stream, copy, target, source)

    def cudaStreamSynchronize(self, stream: int) -> None:
        if self._stream(stream).captured is not None:
            self._stream(stream).spoilt = True
            raise Failed(Error.CAPTURE_UNSUPPORTED)
        self._turn = not self._turn
        hasty = self._turn if self.hasty is None else self.hasty
        others = [queue for handle, queue in self.streams.items() if handle != stream and hasty]
        while any(queue.work and queue.work[0].ready() and self._first(queue) for queue in others):
            pass
        self._drain(stream, lambda: False)

    # --- graphs

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        queue = self._stream(stream)
        queue.captured, queue.spoilt, self._current.recording = [], False, stream

    def cudaStreamEndCapture(self, stream: int) -> int:
        queue = self._stream(stream)
        work, queue.captured, self._current.recording = queue.captured, None, 0
        if queue.spoilt or work is None:
            raise Failed(Error.CAPTURE_INVALIDATED)
        return self._keep(self.graphs, work)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> int:
        return self._keep(self.graphs, list(self.graphs[graph]))

    def cudaGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: int, stream: int) -> None:
        for work in self.graphs[graph]:
            self.queue(stream, work.do, *work.touches, ready=work.ready)

    # --- for the engines that stand on it

    def queue(
        self, stream: int, do: Callable[[], None], *touches: int, ready: Callable[[], bool] = lambda: True
    ) -> None:
        """Put work into a stream, or into what it records. From a thread whose GPU is another one it is refused."""
        with self.lock:
            queue = self._stream(stream)
            if queue.device != self._here():
                raise Failed(Error.INVALID_HANDLE)
            (queue.work if queue.captured is None else queue.captured).append(Work(do, touches, ready))

    def check(self, address: int, size: int) -> None:
        """Whether these bytes are the GPU's to touch."""
        room = (
            len(self.device[address][0]) - 256 if address in self.device else len(self.host.get(address, ()))
        )
        if size > room or (address in self.host and not self.unified):
            raise Failed(Error.ILLEGAL_ADDRESS)

    def live(self) -> int:
        """How much is not freed yet, whatever it is."""
        return sum(len(kind) for kind in (self.device, self.host, self.streams, self.events, self.graphs))

    def _drain(self, stream: int, enough: Callable[[], bool]) -> None:
        while not enough() and (work := self._stream(stream).work):
            work.popleft().do()

    def _first(self, queue: Queue) -> bool:
        queue.work.popleft().do()
        return True

    def _stream(self, stream: int) -> Queue:
        if stream not in self.streams:
            raise Failed(Error.INVALID_HANDLE)
        return self.streams[stream]

    def _keep(self, kind: dict[int, Any], thing: Any) -> int:
        handle = next(self._handles)
        kind[handle] = thing
        return handle

    def _here(self) -> int:
        return int(getattr(self._current, "device", 0))

    def _refuse_while_recording(self) -> None:
        if stream := getattr(self._current, "recording", 0):
            self.streams[stream].spoilt = True
            raise Failed(Error.CAPTURE_UNSUPPORTED)

    def _unused(self, address: int) -> None:
        for queue in self.streams.values():
            if any(address in work.touches for work in queue.work):
                self.faults.append(f"{address:#x} was freed before the work that uses it was done")


# those that give something beside the error
RETURNS = {
    "cudaGetErrorString", "cudaDriverGetVersion", "cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaDeviceGetAttribute",
    "cudaGetDevice", "cudaMemGetInfo", "cudaMalloc", "cudaHostAlloc", "cudaHostGetDevicePointer", "cudaStreamCreateWithFlags",
    "cudaEventCreateWithFlags", "cudaStreamEndCapture", "cudaGraphInstantiate",
}  # fmt: skip
