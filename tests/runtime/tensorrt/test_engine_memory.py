"""What running TensorRT engines hold on a GPU, and for which shapes: on stand-ins."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgeclip.bundle import Bundle
from edgeclip.errors import EngineError
from edgeclip.runtime import cuda
from edgeclip.runtime.engines import (
    EngineOptions,
    open_variant,
    run,
    tensorrt_place,
)
from edgeclip.runtime.engines.tensorrt_engine import IDLE_LANES
from edgeclip.runtime.engines.tensorrt_place import Place
from edgeclip.runtime.engines.tensorrt_shapes import Shapes
from edgeclip.runtime.tensorrt.record import Profile
from tests.mutants import broken
from tests.runtime.tensorrt.cuda_stand_in import StandIn
from tests.runtime.tensorrt.running import check, filled, image, opened, pixels, text
from tests.runtime.tensorrt.stand_ins import IMAGE, TEXT, build, forget, install

pytestmark = pytest.mark.usefixtures("cache")


# --- memory


def test_one_scratch_buffer_serves_all_and_grows(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE, scratch=4000)
    build(toy, text(toy), TEXT, scratch=90_000)
    first = opened(toy)
    slot = filled(first, 8)
    for _ in range(2):
        run(first, slot)
    assert gpu.calls["cudaGraphLaunch"] == 1
    second = open_variant("tensorrt", toy, text(toy), EngineOptions())
    place = tensorrt_place._places[0]
    assert place.scratch.size == 90_000
    for seed in range(2):  # what was recorded holds the old address: it must be recorded again
        slot.inputs["pixels"][:] = pixels(8, seed)
        run(first, slot)
        check(slot)
    assert (gpu.calls["cudaStreamBeginCapture"], gpu.calls["cudaGraphLaunch"]) == (2, 2)
    first.close()
    first = opened(toy)
    assert place.scratch.size == 90_000, "a smaller need changes nothing"
    first.close()
    second.close()
    assert place.scratch.size == 256, "the last one gives it back"


def test_an_engine_that_nobody_closes(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE, scratch=9000)
    engine = opened(toy)
    run(engine, slot := filled(engine, 4))
    del engine, slot
    gc.collect()
    assert tensorrt_place._places[0].scratch.size == 256
    assert len(gpu.host) == 0


def test_growing_while_others_work(gpu: StandIn, toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    build(toy, image(toy), IMAGE)
    build(toy, text(toy), TEXT, scratch=90_000)
    for move, right in (
        (Place._move, True),
        (broken(Place._move, "self.stream.synchronize()", "pass"), False),
    ):
        monkeypatch.setattr(Place, "_move", move)
        engine = opened(toy)
        slot = filled(engine, 4)
        engine.submit(slot)
        other = open_variant("tensorrt", toy, text(toy), EngineOptions())
        assert (gpu.faults == []) is right
        if right:
            engine.wait(slot)
            check(slot)
            engine.close()
            other.close()
    gpu.faults.clear()
    for stream in gpu.streams.values():
        stream.work.clear()


def test_buffers_are_used_again_but_not_before_their_arrays_are_gone(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    slot = filled(engine, 4, 1)
    rows = run(engine, slot)["embeddings"][1:3]
    want = rows.copy()
    del slot  # the rows keep their memory
    other = filled(engine, 4, 2)
    run(engine, other)
    np.testing.assert_array_equal(rows, want)
    assert len(engine.engine.trt.contexts) == 2
    del rows, other
    for seed in range(8):
        run(engine, filled(engine, 4, seed))
    assert len(engine.engine.trt.contexts) == 2
    abandoned = filled(engine, 4, 3)
    engine.submit(abandoned)
    del abandoned  # in flight: whoever gets its buffers must not be written over
    slots = [filled(engine, 4, seed) for seed in (4, 5)]
    for slot in slots:
        check_inputs = slot.inputs["pixels"].copy()
        run(engine, slot)
        np.testing.assert_array_equal(slot.inputs["pixels"], check_inputs)
        check(slot)
    engine.close()
    check(slots[0])  # still readable


def test_idle_buffers_are_few(gpu: StandIn, toy: Bundle) -> None:
    gpu.hasty = False  # what nobody waits for is not done
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    for count in (1, 2, 4, 5, 8, 9, 10, 11, 16, 32, 1, 2):
        run(engine, slot := filled(engine, count))
        check(slot)
        engine.submit(filled(engine, count))  # and forgotten: freed when it is done, not before
    del slot
    gc.collect()
    engine.slot(1)
    assert len(gpu.host) <= 2 * (IDLE_LANES + 1)  # one for its input, one for its output
    engine.close()


def test_unified_memory_is_not_copied(monkeypatch: pytest.MonkeyPatch, toy: Bundle) -> None:
    stand_in = install(monkeypatch, unified=True)
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    slot = engine.slot(4)
    for seed in range(3):
        slot.inputs["pixels"][:] = pixels(4, seed)
        run(engine, slot)
        check(slot)
    assert "cudaMemcpyAsync" not in stand_in.calls
    assert len(stand_in.device) == 1, "nothing but the scratch memory"
    engine.close()
    assert stand_in.faults == []
    forget()


def test_another_gpu_than_the_first(monkeypatch: pytest.MonkeyPatch, toy: Bundle) -> None:
    stand_in = install(monkeypatch, gpus=2)
    cuda.call("cudaSetDevice", 0)  # as PyTorch beside us does
    build(toy, image(toy), IMAGE)
    with pytest.raises(
        EngineError, match=r"no engine of image-fp32 for tensorrt 10\.3.* on NVIDIA Stand-in 1"
    ):
        opened(toy, device=1)
    build(toy, image(toy), IMAGE, changes={"hardware_compatible": "ampere+"})
    engine = opened(toy, device=1)
    with ThreadPoolExecutor(3) as pool:  # threads whose own GPU is the first

        def one(seed: int) -> None:
            slot = filled(engine, 3, seed)
            run(engine, slot)
            check(slot)

        list(pool.map(one, range(9)))
    assert {device for _, device in stand_in.device.values()} == {1}
    assert cuda.call("cudaGetDevice") == 0
    engine.close()
    assert stand_in.faults == []
    forget()


# --- profiles


@pytest.mark.parametrize(
    ("profiles", "sizes", "profile", "rows"),
    [
        ([{"N": (1, 8, 32)}], {"N": 3}, 0, 4),
        ([{"N": (1, 8, 32)}], {"N": 5}, 0, 5),
        ([{"N": (1, 8, 32)}], {"N": 6}, 0, 8),
        ([{"N": (1, 8, 30)}], {"N": 29}, 0, 30),
        ([{"N": (4, 8, 32)}], {"N": 1}, 0, 4),
        ([{"N": (6, 6, 6)}], {"N": 2}, 0, 6),
        ([{"N": (1, 1, 1)}, {"N": (1, 8, 32)}], {"N": 1}, 0, 1),
        ([{"N": (1, 1, 4)}, {"N": (1, 8, 32)}], {"N": 4}, 1, 4),
        ([{"N": (1, 1, 4)}, {"N": (2, 32, 64)}], {"N": 2}, 0, 2),
        ([{"N": (1, 8, 32), "L": (1, 16, 77)}], {"N": 3, "L": 9}, 0, 3),
        ([{"N": (4, 8, 32), "L": (1, 16, 77)}], {"N": 3, "L": 9}, 0, 4),
        ([{"N": (1, 8, 32), "L": (1, 8, 16)}, {"N": (1, 8, 32), "L": (8, 77, 77)}], {"N": 8, "L": 40}, 1, 8),
    ],
)
def test_profile_and_rows(profiles: list[Profile], sizes: dict[str, int], profile: int, rows: int) -> None:
    shape = Shapes("x", profiles).choose(sizes)
    assert (shape.profile, shape.run) == (profile, {**sizes, "N": rows})
    assert all(shape.room[name] >= size for name, size in shape.run.items())
    assert shape.room["N"] <= profiles[profile]["N"][2]


def test_prompts_of_each_row_are_padded_with_it() -> None:
    shapes = Shapes("x", [{"N": (4, 4, 8), "B": (1, 1, 8), "P": (1, 4, 16)}])
    for sets, padded in ((1, 1), (3, 4)):
        assert shapes.choose({"N": 3, "B": sets, "P": 9}).run == {"N": 4, "B": padded, "P": 9}
    with pytest.raises(
        EngineError, match=r"x: no profile for N=3, B=1, P=17; .*P 1-16\. Ask for sizes within"
    ):
        shapes.choose({"N": 3, "B": 1, "P": 17})


@pytest.mark.parametrize(
    ("batch", "advice"), [(0, "Ask for sizes"), (33, "build it for more"), (1000, "--batch")]
)
def test_a_batch_beyond_the_engine(gpu: StandIn, toy: Bundle, batch: int, advice: str) -> None:
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    with pytest.raises(
        EngineError,
        match=rf"image-fp32: no profile for N={batch}; it was built for N 1-32\. .*{advice}",
    ):
        engine.slot(batch)
    engine.close()
