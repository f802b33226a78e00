"""NVIDIA GPUs through `cuda-bindings`: what is there, pinned memory, device buffers, streams, events, CUDA graphs. No PyTorch.

Threads: whatever belongs to a GPU is used inside `with on(device)`. Fork: CUDA does not survive one, so a child of a process that
used it is refused in one line instead of failing somewhere inside the driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgeclip.errors import EngineError, MissingExtraError

# of a desktop or server, of a Jetson (two generations of its driver), of Windows' Linux
NODES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_ADVICE = {  # by cudaError_t
    3: "CUDA cannot start here: see `edgeclip doctor`.",
    35: "Update the NVIDIA driver, or install a cuda-bindings no newer than it serves.",
    46: "Another process holds the GPU for itself: end it.",
    100: "No NVIDIA GPU is visible: check `nvidia-smi` and CUDA_VISIBLE_DEVICES.",
    101: "There is no GPU of that number: see `edgeclip doctor`.",
}
# errors after which a process can do nothing on its GPU
_BROKEN = {700, 702, 710, 714, 715, 716, 717, 718, 719}
_used_by = 0  # process that first called CUDA; 0: none yet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """One GPU."""

    index: int
    name: str  # e.g. "NVIDIA RTX A4000"
    capability: tuple[int, int]  # compute capability, e.g. (8, 6)
    memory: int  # bytes
    driver: str  # highest CUDA version that its driver serves, e.g. "13.0"

    @property
    def arch(self) -> str:
        """As compilers write it, e.g. "sm86"."""
        return f"sm{self.capability[0]}{self.capability[1]}"


def present() -> bool:
    """Whether the package and a device node are here; starts nothing, so that a process may still fork. Never raises."""
    if sys.platform != "win32" and not any(Path(node).exists() for node in NODES):
        return False
    return find_spec("cuda") is not None and find_spec("cuda.bindings") is not None


def devices() -> list[Device]:
    """The GPUs that this process may use, in CUDA's order; [] without package, driver or GPU. Never raises, makes no context."""
    return list(_devices()) if present() else []


def find(number: int) -> Device:
    """The GPU of that number. Raises EngineError where there is none, and says which there are."""
    found = devices()
    if not found:
        raise EngineError(
            "no NVIDIA GPU that CUDA can use: it takes a GPU, its driver and cuda-bindings. See `edgeclip doctor` for what is "
            "missing, or run on onnxruntime-cpu."
        )
    if number not in range(len(found)):
        have = ", ".join(f"{device.index} ({device.name})" for device in found)
        raise EngineError(f"GPU {number}: not found; there is {have}. See `edgeclip doctor`.")
    return found[number]


@cache
def _devices() -> tuple[Device, ...]:
    try:
        version = call("cudaDriverGetVersion")
        driver = f"{version // 1000}.{version % 1000 // 10}"
        return tuple(_device(i, driver) for i in range(call("cudaGetDeviceCount")))
    except (EngineError, MissingExtraError) as error:
        log.info("no GPU: %s", error)
        return ()


def _device(index: int, driver: str) -> Device:
    facts = call("cudaGetDeviceProperties", index)
    return Device(index, facts.name.decode(), (facts.major, facts.minor), int(facts.totalGlobalMem), driver)


def call(name: str, *arguments: Any, device: int | None = None) -> Any:
    """Call one function of the CUDA runtime: its result, or a tuple of several.

    Args:
        name: e.g. "cudaMalloc".
        device: the GPU that it concerns, for the message.
    Raises:
        EngineError: what CUDA said, or a forked child of a process that used CUDA.
        MissingExtraError: `cuda-bindings` is not installed.
    """
    function = getattr(_runtime(), name)
    try:
        error, *found = function(*arguments)
    except RuntimeError as missing:  # the package is there, the driver's library is not
        raise EngineError(f"CUDA: {name}: {missing}. Install the NVIDIA driver.") from missing
    if int(error):
        _runtime().cudaGetLastError()  # forgets it: whoever launches next would report it as his own
        raise EngineError(_sentence(name, int(error), _words(error), arguments, device))
    return tuple(found) if len(found) > 1 else found[0] if found else None


def _runtime() -> Any:
    global _used_by
    if _used_by not in (0, os.getpid()):
        raise EngineError(
            f"CUDA was used by process {_used_by} before it forked this one, and does not survive that. "
            "Open the bundle in the child only, or start processes with 'spawn'."
        )
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingExtraError(
            f"cuda-bindings is not installed ({error}). Run: pip install 'edgeclip[tensorrt]'"
        ) from error
    _used_by = os.getpid()
    return runtime


def _words(error: Any) -> str:
    _, text = _runtime().cudaGetErrorString(error)
    return text.decode() if isinstance(text, bytes) else str(text)


def _sentence(name: str, code: int, words: str, arguments: tuple[Any, ...], device: int | None) -> str:
    where = "CUDA" if device is None else f"GPU {device}"
    if code == OUT_OF_MEMORY and name in ("cudaMalloc", "cudaHostAlloc"):
        return f"{where}: {_room(name, arguments[0])}. Close other programs, or take a smaller batch."
    advice = _ADVICE.get(code, "See `edgeclip doctor`.")
    if code in _BROKEN:
        advice = "The GPU's state is lost to this process: start it again."
    return f"{where}: {name} failed: {words} ({code}). {advice}"


def _room(name: str, asked: int) -> str:
    """What was asked for and what there is."""
    if name == "cudaHostAlloc":
        return f"no room for {asked / 1e6:.1f} MB of pinned memory"
    error, free, total = _runtime().cudaMemGetInfo()
    have = "" if int(error) else f", {free / 1e6:.1f} of {total / 1e6:.1f} MB are free"
    return f"no room for {asked / 1e6:.1f} MB{have}"


@contextlib.contextmanager
def on(device: int) -> Iterator[None]:
    """Make a GPU this thread's current one; the one before is current again afterwards, as PyTorch beside us expects.

    One that nobody uses stays out of it: each thread begins at number 0, and to make that current again would take 300 MB of
    it, or fail where another process holds it for itself.
    """
    before = call("cudaGetDevice")
    call("cudaSetDevice", device, device=device)
    try:
        yield
    finally:
        if before != device and _in_use(before):
            call("cudaSetDevice", before, device=before)


def _in_use(device: int) -> bool:
    """Whether this process has set a GPU up, which `cudaSetDevice` does since CUDA 12; also where the driver does not tell."""
    from cuda.bindings import driver

    try:
        error, _, active = driver.cuDevicePrimaryCtxGetState(device)
    except RuntimeError:  # the bindings do not find the driver, which CUDA's runtime did
        return True
    return bool(active) or int(error) != 0


@cache
def unified(device: int) -> bool:
    """Whether CPU and GPU share their memory, as on a Jetson: pinned pages are then read by the GPU in place."""
    attribute = _runtime().cudaDeviceAttr.cudaDevAttrIntegrated
    return bool(call("cudaDeviceGetAttribute", attribute, device, device=device))


def fetch(array: NDArray[Any], address: int) -> None:
    """Copy from the current GPU's memory into an array, whole, and wait for it. Work that writes there must be done."""
    kind = _runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
    call("cudaMemcpy", array.ctypes.data, address, array.nbytes, kind)


class Owned:
    """Something of CUDA's on one GPU, freed once: by `free`, or with its last reference. The end of the process frees the rest."""

    def __init__(self, device: int, handle: Any, how: str) -> None:
        self.device, self.handle = device, int(handle)
        self._freed = weakref.finalize(self, _free, os.getpid(), device, how, int(handle))
        self._freed.atexit = False  # the driver may be gone by then

    def free(self) -> None:
        """Now. Nothing that is still queued may use it. Twice is fine."""
        self._freed()


def _free(owner: int, device: int, how: str, handle: int) -> None:
    if owner != os.getpid():  # a forked child, which has no CUDA
        return
    try:
        with on(device):
            call(how, handle, device=device)
    except EngineError as error:  # of a destructor nothing can be raised
        log.warning("%s", error)


class Memory(Owned):
    """Bytes on the GPU, on a 256-byte boundary."""

    def __init__(self, device: int, size: int) -> None:
        with on(device):
            super().__init__(device, call("cudaMalloc", size, device=device), "cudaFree")
        self.size = size

    @property
    def address(self) -> int:
        """As the GPU sees it."""
        return self.handle


class Pinned(Owned):
    """Zeroed bytes of the CPU's memory that stay in place, so that the GPU copies them by itself, or reads them there."""

    def __init__(self, device: int, size: int) -> None:
        flags = _runtime().cudaHostAllocPortable | _runtime().cudaHostAllocMapped
        with on(device):
            super().__init__(device, call("cudaHostAlloc", size, flags, device=device), "cudaFreeHost")
            self.address = int(call("cudaHostGetDevicePointer", self.handle, 0, device=device))
        self.size = size
        ctypes.memset(self.handle, 0, size)

    def array(self, shape: tuple[int, ...], dtype: DTypeLike, *beside: object) -> NDArray[Any]:
        """The first bytes as an array. The memory, and whatever else is in `beside`, lives as long as the array or a view of it."""
        kind = np.dtype(dtype)
        if (wanted := math.prod(shape) * kind.itemsize) > self.size:
            raise EngineError(f"{shape} {kind} takes {wanted} bytes, the slot has {self.size}.")
        return np.asarray(_Window(self.handle, shape, kind.str, (self, *beside)))


class _Window:
    """What numpy asks for the place of an array's data; the array keeps it."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str, keep: tuple[object, ...]) -> None:
        self.__array_interface__ = {
            "version": 3, "data": (address, False), "shape": shape, "typestr": kind,
        }  # fmt: skip
        self._keep = keep


class Event(Owned):
    """A point in a stream's work."""

    def __init__(self, device: int) -> None:
        with on(device):
            flags = _runtime().cudaEventDisableTiming
            super().__init__(
                device, call("cudaEventCreateWithFlags", flags, device=device), "cudaEventDestroy"
            )


class Stream(Owned):
    """Work of the GPU in order, beside other streams' work. Its methods are for `with on(device)`."""

    def __init__(self, device: int) -> None:
        with on(device):
            # one that does not wait for the default stream, which others use
            flags = _runtime().cudaStreamNonBlocking
            made = call("cudaStreamCreateWithFlags", flags, device=device)
            super().__init__(device, made, "cudaStreamDestroy")

    def copy_in(self, target: int, source: int, size: int) -> None:
        """Queue a copy from pinned memory to the GPU, both by address."""
        self._copy(target, source, size, _runtime().cudaMemcpyKind.cudaMemcpyHostToDevice)

    def copy_out(self, target: int, source: int, size: int) -> None:
        """Queue a copy from the GPU to pinned memory."""
        self._copy(target, source, size, _runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def copy_within(self, target: int, source: int, size: int) -> None:
        """Queue a copy from one place of the GPU's memory to another."""
        self._copy(target, source, size, _runtime().cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        call("cudaMemcpyAsync", target, source, size, kind, self.handle, device=self.device)

    def mark(self, event: Event) -> None:
        """Let the event stand for all that is queued so far."""
        call("cudaEventRecord", event.handle, self.handle, device=self.device)

    def after(self, event: Event) -> None:
        """Let what is queued from now on wait for the event; the CPU does not."""
        call("cudaStreamWaitEvent", self.handle, event.handle, 0, device=self.device)

    def synchronize(self) -> None:
        """Wait on the CPU until all that is queued is done. Other Python threads go on meanwhile."""
        # Not cudaEventSynchronize: until cuda-bindings 12.9 it kept the interpreter's lock.
        call("cudaStreamSynchronize", self.handle, device=self.device)


class Graph(Owned):
    """Queued work, recorded once and launched as a whole: what costs a hundred launches then costs one.

    Args:
        stream: what is recorded, and not executed, is what `work` queues on it.
    Raises:
        EngineError: something of it cannot be recorded. The stream is as before.
    """

    def __init__(self, stream: Stream, work: Callable[[], None]) -> None:
        device, modes = stream.device, _runtime().cudaStreamCaptureMode
        mode = modes.cudaStreamCaptureModeThreadLocal  # other threads may go on allocating
        call("cudaStreamBeginCapture", stream.handle, mode, device=device)
        try:
            work()
        except BaseException:
            with contextlib.suppress(EngineError):  # of the two reasons the first one counts
                call("cudaGraphDestroy", call("cudaStreamEndCapture", stream.handle))
            raise
        recorded = call("cudaStreamEndCapture", stream.handle, device=device)
        try:
            made = call("cudaGraphInstantiate", recorded, 0, device=device)
        finally:
            call("cudaGraphDestroy", recorded, device=device)
        super().__init__(device, made, "cudaGraphExecDestroy")

    def launch(self, stream: Stream) -> None:
        """Queue all of it."""
        call("cudaGraphLaunch", self.handle, stream.handle, device=self.device)
