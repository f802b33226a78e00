"""CUDA without PyTorch: against a stand-in that promises no more than CUDA does, and against the real bindings' names."""

from __future__ import annotations

import ast
import gc
import inspect
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.runtime import cuda
from tests.runtime.tensorrt.cuda_stand_in import StandIn
from tests.runtime.tensorrt.stand_ins import forget, install


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = install(monkeypatch, gpus=2, memory=1 << 20)
    gc.freeze()  # what is there already need not be looked through each time
    yield stand_in
    gc.collect()
    gc.unfreeze()
    assert (stand_in.faults, stand_in.live()) == ([], 0)
    forget()


def test_devices(gpu: StandIn) -> None:
    first, second = cuda.devices()
    assert first == cuda.Device(0, "NVIDIA Stand-in 0", (8, 6), 1 << 20, "12.6")
    assert (second.index, second.arch) == (1, "sm86")


def test_without_a_gpu_there_are_none_and_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.setattr(cuda, "NODES", ("/nowhere",))
    assert (cuda.present(), cuda.devices()) == (False, [])
    monkeypatch.setattr(cuda, "present", lambda: True)
    monkeypatch.setitem(
        sys.modules, "cuda.bindings", None
    )  # nor the package, though another test imported it
    assert cuda.devices() == []
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeclip\[tensorrt\]'"):
        cuda.call("cudaGetDeviceCount")
    forget()


def test_the_real_bindings_without_a_driver() -> None:
    """In a process of its own: nothing is printed, nothing raised, and an error names the remedy."""
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    code = """
from edgeclip.runtime import cuda
cuda.present = lambda: True
print(len(cuda.devices()))
try:
    cuda.Memory(7, 100)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, error = done.stdout.splitlines()
    assert done.stderr == ""
    if count == "0":
        assert re.fullmatch(r"EngineError CUDA: \w+ failed: .* \(\d+\)\. [A-Z].*\.", error)


def test_bindings_of_before_12_9_raise_without_a_driver(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(gpu, "cudaGetDeviceCount", no_driver)
    with pytest.raises(
        EngineError, match=r"^CUDA: cudaGetDeviceCount: Failed to dlopen libcuda\.so\.1\. Install the NVIDIA"
    ):
        cuda.call("cudaGetDeviceCount")
    assert cuda.devices() == []


def test_an_array_goes_to_the_gpu_and_back(gpu: StandIn) -> None:
    host, memory, stream = cuda.Pinned(1, 24), cuda.Memory(1, 24), cuda.Stream(1)
    array = host.array((2, 3), np.float32)
    assert not array.any()
    array[:] = np.arange(6).reshape(2, 3)
    with cuda.on(1):
        stream.copy_in(memory.address, host.handle, 24)
        stream.synchronize()
        array[:] = 0
        stream.copy_out(host.handle, memory.address, 24)
        assert not array.any(), "queued, not done"
        stream.synchronize()
    np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3))


def test_a_copy_within_the_gpu(gpu: StandIn) -> None:
    stream, pinned = cuda.Stream(0), cuda.Pinned(0, 8)
    first, second = cuda.Memory(0, 8), cuda.Memory(0, 8)
    array = pinned.array((8,), np.uint8)
    array[:] = range(8)
    with cuda.on(0):
        stream.copy_in(first.address, pinned.address, 8)
        stream.copy_within(second.address, first.address, 8)
        stream.synchronize()
        array[:] = 0
        stream.copy_out(pinned.address, second.address, 8)
        stream.synchronize()
    assert array.tolist() == list(range(8))
    for thing in (first, second, stream):
        thing.free()


def test_streams_wait_for_events_and_for_nothing_else(gpu: StandIn) -> None:
    source, target, memory = cuda.Pinned(0, 4), cuda.Pinned(0, 4), cuda.Memory(0, 4)
    first, second, event = cuda.Stream(0), cuda.Stream(0), cuda.Event(0)
    given, found = source.array((1,), np.int32), target.array((1,), np.int32)
    given[0], gpu.hasty = 7, False
    for waits in (False, True):
        with cuda.on(0):
            first.copy_in(memory.address, source.handle, 4)
            first.mark(event)
            if waits:
                second.after(event)
            second.copy_out(target.handle, memory.address, 4)
            second.synchronize()
            assert (found[0] == 7) == waits
            cuda.call("cudaStreamSynchronize", first.handle)
            given[0], found[0] = 7, 0
            if not waits:
                memory = cuda.Memory(0, 4)  # whose bytes are not yet the right ones


def test_pinned_memory_lives_as_long_as_an_array_of_it(gpu: StandIn) -> None:
    kept = object()
    view = cuda.Pinned(0, 64).array((4, 4), np.float32, kept)[1:, ::2]
    gc.collect()
    assert len(gpu.host) == 1
    view[:] = 3
    del view
    gc.collect()
    assert len(gpu.host) == 0


def test_an_array_larger_than_its_memory_is_refused(gpu: StandIn) -> None:
    with pytest.raises(EngineError, match=r"\(5,\) float32 takes 20 bytes, the slot has 16"):
        cuda.Pinned(0, 16).array((5,), np.float32)


def test_freed_once(gpu: StandIn) -> None:
    memory = cuda.Memory(0, 100)
    assert memory.address % 256 == 0
    memory.free()
    memory.free()
    assert gpu.calls["cudaFree"] == 1
    del memory
    gc.collect()
    assert gpu.calls["cudaFree"] == 1


def test_no_room(gpu: StandIn) -> None:
    kept = cuda.Memory(0, 600_000)
    with pytest.raises(
        EngineError, match=r"GPU 0: no room for 500\.0 MB, 0\.4 of 1\.0 MB are free\. Close other programs"
    ):
        cuda.Memory(0, 500_000_000)
    with pytest.raises(EngineError, match=r"GPU 0: no room for 500\.0 MB of pinned memory"):
        cuda.Pinned(0, 500_000_000)
    assert kept.size == 600_000


def test_no_such_gpu(gpu: StandIn) -> None:
    with pytest.raises(
        EngineError, match=r"GPU 2: cudaSetDevice failed: invalid device \(101\)\. There is no GPU of that"
    ):
        cuda.Stream(2)


def test_a_lost_gpu(gpu: StandIn) -> None:
    host, stream = cuda.Pinned(0, 8), cuda.Stream(0)
    with cuda.on(0):
        stream.copy_in(12345, host.handle, 8)
        with pytest.raises(
            EngineError, match=r"illegal address \(700\)\. The GPU's state is lost to this process"
        ):
            stream.synchronize()


def test_a_gpu_that_nobody_uses_is_not_set_up(gpu: StandIn) -> None:
    for _ in range(2):
        cuda.Stream(1)
    assert gpu.in_use == {1}


@pytest.mark.parametrize("answer", [(3, 0, 0), RuntimeError("libcuda.so.1")])
def test_a_driver_that_does_not_tell(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, int, int] | Exception
) -> None:
    """Then the GPU that was current is again, whatever that takes."""

    def state(device: int) -> tuple[int, int, int]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(sys.modules["cuda.bindings"].driver, "cuDevicePrimaryCtxGetState", state)
    cuda.Stream(1)
    assert (cuda.call("cudaGetDevice"), gpu.in_use) == (0, {0, 1})


def test_each_thread_has_its_gpu_and_gets_its_own_back(gpu: StandIn) -> None:
    cuda.call("cudaSetDevice", 0)
    cuda.call("cudaSetDevice", 1)
    seen = []

    def elsewhere() -> None:
        seen.append(cuda.call("cudaGetDevice"))
        with cuda.on(1):
            seen.append(cuda.call("cudaGetDevice"))
        seen.append(cuda.call("cudaGetDevice"))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    with cuda.on(0):
        seen.append(cuda.call("cudaGetDevice"))
    assert [*seen, cuda.call("cudaGetDevice")] == [0, 1, 0, 0, 1]
    cuda.call("cudaSetDevice", 0)


def test_recorded_work_is_launched_as_a_whole(gpu: StandIn) -> None:
    host, memory, stream = cuda.Pinned(0, 8), cuda.Memory(0, 4), cuda.Stream(0)
    array = host.array((2,), np.int32)

    def there_and_back() -> None:
        stream.copy_in(memory.address, host.handle, 4)
        stream.copy_out(host.handle, memory.address, 4)

    array[:] = (5, 6)
    with cuda.on(0):
        graph = cuda.Graph(stream, there_and_back)
        stream.synchronize()
        assert gpu.calls["cudaMemcpyAsync"] == 2
        for _ in range(3):
            graph.launch(stream)
        stream.synchronize()
    assert (gpu.calls["cudaMemcpyAsync"], gpu.calls["cudaGraphLaunch"], gpu.calls["cudaGraphDestroy"]) == (
        2,
        3,
        1,
    )


def test_what_cannot_be_recorded_leaves_the_stream_as_it_was(gpu: StandIn) -> None:
    stream = cuda.Stream(0)
    with cuda.on(0):
        with pytest.raises(EngineError, match="cudaMalloc failed: capture unsupported"):
            cuda.Graph(stream, lambda: cuda.Memory(0, 8).free())
        with pytest.raises(EngineError, match="cudaStreamEndCapture failed: capture invalidated"):
            cuda.Graph(stream, lambda: setattr(gpu.streams[stream.handle], "spoilt", True))
        stream.synchronize()


@pytest.mark.usefixtures("forks")
def test_a_forked_child_is_told(gpu: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    memory = cuda.Memory(0, 8)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            freed = gpu.calls.get("cudaFree", 0)
            memory.free()  # must not reach the driver
            cuda.Stream(0)
        except EngineError as error:
            os.write(writing, f"{gpu.calls.get('cudaFree', 0) - freed} {caplog.text}{error}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(reading, 1000).decode()
    assert re.fullmatch(
        r"0 CUDA was used by process \d+ before it forked this one.* start processes with 'spawn'\.", said
    )
    os.close(reading)
    os.close(writing)


def test_it_ends_without_a_crash_whatever_is_left() -> None:
    """Arrays that outlive the interpreter's own end."""
    code = """
import atexit, sys, pytest
atexit.register(lambda: print(gpu.live(), "at the end"))
from edgeclip.runtime import cuda
from tests.runtime.tensorrt.stand_ins import install
import numpy as np
patch = pytest.MonkeyPatch()
gpu = install(patch)
kept = cuda.Pinned(0, 64).array((4, 4), np.float32)
sys.kept, sys.memory, sys.stream = kept, cuda.Memory(0, 8), cuda.Stream(0)
print(gpu.live())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n3 at the end\n", "")


def test_every_function_is_in_the_real_bindings_with_so_many_arguments() -> None:
    """The text of a binding's first line is its signature."""
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    tree = ast.parse(inspect.getsource(cuda))
    calls = {
        node.args[0].value: len(node.args) - 1
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "call"
        and isinstance(node.args[0], ast.Constant)
    }
    assert len(calls) >= 20
    for name, count in calls.items():
        signature = getattr(real, name).__doc__.splitlines()[0]
        inside = signature.partition("(")[2].rpartition(")")[0]
        assert len([part for part in inside.split(",") if part.strip()]) == count, signature
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")
    }
    freed = set(re.findall(r'"(cuda\w+(?:Destroy|Free\w*))"', inspect.getsource(cuda)))
    for name in names | freed:
        assert hasattr(real, name) or any(
            hasattr(getattr(real, kind), name)
            for kind in ("cudaMemcpyKind", "cudaDeviceAttr", "cudaStreamCaptureMode")
        ), name
    driver = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")
    assert driver.cuDevicePrimaryCtxGetState.__doc__.startswith("cuDevicePrimaryCtxGetState(dev)")
    codes = {int(code) for code in real.cudaError_t}
    assert {cuda.OUT_OF_MEMORY, *cuda._ADVICE, *cuda._BROKEN} <= codes
