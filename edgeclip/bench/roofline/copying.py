"""The rate at which this machine copies memory: what reading a tower's weights is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgeclip.errors import EngineError
from edgeclip.runtime import cuda
from edgeclip.runtime.memory import available_memory

LEAST_BYTES, MOST_BYTES = 64 << 20, 1 << 30  # of one of the two buffers
CACHES = 4  # times the last-level cache: a copy that stays in it says nothing about memory
SECONDS = 0.3  # of copies, at least MIN_COPIES
MIN_COPIES = 3
GPU_BYTES = 256 << 20  # of one buffer; the largest cache of a GPU so far has 126 MB
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20}

clock = time.perf_counter_ns


def copy_gb_per_s(threads: int) -> float:
    """GB read and written in a second, by this many threads at once, outside of the caches.

    Raises:
        EngineError: no memory for two buffers of LEAST_BYTES.
    """
    size = buffer_bytes(last_level_cache(), available_memory())
    if size < LEAST_BYTES:
        raise EngineError(f"copy: expected {2 * LEAST_BYTES >> 20} MB of free memory, got {2 * size >> 20}.")
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)  # written, so that every page is there
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:  # numpy copies without the interpreter's lock
        return 2 * size / _best_ns(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)))


def gpu_copy_gb_per_s(device: int) -> float:
    """GB read and written in a second within a GPU's own memory.

    Raises:
        EngineError, MissingExtraError: no GPU, no cuda-bindings, or no room.
    """
    first, second = cuda.Memory(device, GPU_BYTES), cuda.Memory(device, GPU_BYTES)
    stream = cuda.Stream(device)

    def copy() -> None:
        stream.copy_within(second.address, first.address, GPU_BYTES)
        stream.synchronize()

    try:
        with cuda.on(device):
            return 2 * GPU_BYTES / _best_ns(copy)
    finally:
        for thing in (stream, first, second):
            thing.free()


def buffer_bytes(cache: int, available: int | None) -> int:
    """How large one buffer is: well over the cache, and both within a quarter of the memory that is free."""
    wanted = min(max(CACHES * cache, LEAST_BYTES), MOST_BYTES)
    return wanted if available is None else min(wanted, available // 8)


def last_level_cache(folder: Path = _CACHE) -> int:
    """Bytes of the largest cache that the first CPU reaches; 0 where the system does not say.

    Source: Documentation/ABI/testing/sysfs-devices-system-cpu of the Linux kernel, ".../cache/index*/size".
    """
    sizes = [0]
    for path in folder.glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text.rstrip("KM")) * _UNITS.get(text[-1:], 1))
        except (OSError, ValueError):
            continue
    return max(sizes)


def _best_ns(copy: Callable[[], object]) -> int:
    """The shortest of several, after one that does not count."""
    copy()
    times: list[int] = []
    while len(times) < MIN_COPIES or sum(times) < 1e9 * SECONDS:
        begun = clock()
        copy()
        times.append(clock() - begun)
    return min(times)
