"""runtime/cuda.py on a real NVIDIA GPU, without TensorRT: pytest -m gpu."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgeclip.errors import EngineError
from edgeclip.runtime import cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda.devices(), reason="needs an NVIDIA GPU and cuda-bindings"),
]
BIG = 64 << 20  # bytes: long enough on any bus (2 ms and more) to see that queueing is not doing


def test_devices() -> None:
    for i, device in enumerate(cuda.devices()):
        assert device.index == i
        assert device.name
        assert device.capability >= (5, 0)
        assert device.memory > 1 << 30
        assert float(device.driver) >= 12


def test_bytes_go_there_and_back() -> None:
    host, memory, stream = cuda.Pinned(0, BIG), cuda.Memory(0, BIG), cuda.Stream(0)
    array = host.array((BIG // 8,), np.float64)
    assert not array.any()
    array[:] = np.arange(len(array))
    with cuda.on(0):
        stream.copy_in(memory.address, host.handle, BIG)
        stream.synchronize()
        array[:] = 0
        stream.copy_out(host.handle, memory.address, BIG)
        stream.synchronize()
    np.testing.assert_array_equal(array, np.arange(len(array)))


def test_another_stream_waits_for_an_event() -> None:
    source, target, memory = cuda.Pinned(0, BIG), cuda.Pinned(0, BIG), cuda.Memory(0, BIG)
    first, second, event = cuda.Stream(0), cuda.Stream(0), cuda.Event(0)
    source.array((BIG,), np.uint8)[:] = 7
    with cuda.on(0):
        for _ in range(5):
            target.array((BIG,), np.uint8)[:] = 0
            first.copy_in(memory.address, source.handle, BIG)
            first.mark(event)
            second.after(event)
            second.copy_out(target.handle, memory.address, BIG)
            second.synchronize()
            assert (target.array((BIG,), np.uint8) == 7).all()


def test_other_threads_go_on_while_one_waits() -> None:
    """The interpreter's lock is free during `synchronize`."""
    host, memory, stream = cuda.Pinned(0, BIG), cuda.Memory(0, BIG), cuda.Stream(0)
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    with cuda.on(0):
        for _ in range(20):  # 40 ms of copying
            stream.copy_in(memory.address, host.handle, BIG)
        thread.start()
        before = counted[0]
        stream.synchronize()
        during = counted[0] - before
    stop.set()
    thread.join()
    assert during > 1000


def test_recorded_work_runs_each_time_it_is_launched() -> None:
    source, target, memory, stream = cuda.Pinned(0, 4), cuda.Pinned(0, 4), cuda.Memory(0, 4), cuda.Stream(0)
    given, found = source.array((1,), np.int32), target.array((1,), np.int32)

    def there_and_back() -> None:
        stream.copy_in(memory.address, source.handle, 4)
        stream.copy_out(target.handle, memory.address, 4)

    with cuda.on(0):
        given[0] = 5
        graph = cuda.Graph(stream, there_and_back)
        stream.synchronize()
        assert found[0] == 0, "recorded, not done"
        for number in (8, 9):
            given[0] = number
            graph.launch(stream)
            stream.synchronize()
            assert found[0] == number


def test_what_cannot_be_recorded_leaves_the_stream_usable() -> None:
    stream = cuda.Stream(0)
    with cuda.on(0):
        with pytest.raises(EngineError, match="captur"):
            cuda.Graph(stream, stream.synchronize)
        stream.synchronize()
        assert cuda.Memory(0, 64).address


def test_no_room_is_said_in_numbers() -> None:
    with pytest.raises(EngineError, match=r"GPU 0: no room for \d+\.\d MB, \d+\.\d of \d+\.\d MB are free"):
        cuda.Memory(0, 1 << 50)
    assert cuda.Memory(0, 64).address, "the error is not kept"


def test_memory_is_given_back() -> None:
    with cuda.on(0):
        free, _ = cuda.call("cudaMemGetInfo")
        for _ in range(20):
            kept = cuda.Memory(0, BIG)
            pinned = cuda.Pinned(0, BIG).array((BIG,), np.uint8)
        del kept, pinned
        assert cuda.call("cudaMemGetInfo")[0] >= free - BIG


def test_a_forked_child_is_told() -> None:
    stream = cuda.Stream(0)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            stream.free()
            cuda.Stream(0)
        except EngineError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1000).decode().startswith("CUDA was used by process")
    os.close(reading)
    os.close(writing)


def test_it_ends_without_a_crash_whatever_is_left() -> None:
    code = """
import sys
import numpy as np
from edgeclip.runtime import cuda
sys.kept = cuda.Pinned(0, 64).array((4, 4), np.float32), cuda.Memory(0, 8), cuda.Stream(0), cuda.Event(0)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
