"""TensorRT engines running, on stand-ins for the GPU and the library: values, order, memory, threads, refusals."""

from __future__ import annotations

import gc
import logging
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip.bundle import Bundle, Port
from edgeclip.errors import CheckFailed, EngineError, MissingExtraError
from edgeclip.export.bake import bake
from edgeclip.runtime import cuda
from edgeclip.runtime.engines import (
    EngineOptions,
    Slot,
    local_variants,
    open_variant,
    run,
    tensorrt,
    tensorrt_place,
)
from edgeclip.runtime.engines.tensorrt_engine import IDLE_LANES
from edgeclip.runtime.engines.tensorrt_lane import Lane
from edgeclip.runtime.engines.tensorrt_place import Place
from edgeclip.runtime.engines.tensorrt_shapes import Shapes
from edgeclip.runtime.tensorrt.library import load_library
from edgeclip.runtime.tensorrt.record import Profile
from edgeclip.runtime.tensorrt.store import store_of
from tests.mutants import broken
from tests.runtime.tensorrt.cuda_stand_in import StandIn
from tests.runtime.tensorrt.stand_ins import IMAGE, TEXT, build, forget, install
from tests.runtime.toy import SIDE, image_reference, make_bundle, picture, text_reference

EXACT = {"rtol": 0, "atol": 1e-6}
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[StandIn]:
    """Whatever a test does, nothing is freed too early, nothing twice, and nothing is left."""
    stand_in = install(monkeypatch)
    gc.freeze()  # what is there already need not be looked through each time
    yield stand_in
    caplog.get_records("call").clear()  # errors in them hold whatever raised them
    tensorrt_place._places.clear()
    gc.collect()
    gc.unfreeze()
    assert stand_in.faults == []
    assert stand_in.live() == 0
    forget()


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """For faults that are planted: what is left behind does not matter."""
    yield install(monkeypatch)
    forget()


def image(toy: Bundle) -> Any:
    return toy.manifest.variants_of("image")[0]


def text(toy: Bundle) -> Any:
    return toy.manifest.variants_of("text")[0]


def opened(toy: Bundle, name: str = "tensorrt", **options: Any) -> Any:
    return open_variant(name, toy, image(toy), EngineOptions(**options))


def pixels(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def filled(engine: Any, count: int, seed: int = 0) -> Slot:
    slot: Slot = engine.slot(count)
    slot.inputs["pixels"][:] = pixels(count, seed)
    return slot


def check(slot: Slot) -> None:
    np.testing.assert_allclose(slot.outputs["embeddings"], image_reference(slot.inputs["pixels"]), **EXACT)


# --- values


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_rows_equal_the_reference_at_every_batch(gpu: StandIn, toy: Bundle, name: str) -> None:
    build(toy, image(toy), IMAGE, name)
    engine = opened(toy, name)
    for count in (1, 2, 3, 5, 8, 9, 17, 32, 3, 3):
        slot = filled(engine, count, count)
        for _ in range(3):  # piece by piece, recorded, launched
            run(engine, slot)
            assert slot.outputs["embeddings"].shape == (count, 8)
            check(slot)
            slot.inputs["pixels"][:] = pixels(count, count + 100)
    assert (engine.name, engine.overlaps, engine.max_batch) == (name, True, 32)
    assert engine.provider.startswith(f"{name} 1")
    engine.close()
    engine.close()


def test_texts_of_every_length_share_one_context(gpu: StandIn, toy: Bundle) -> None:
    build(toy, text(toy), TEXT)
    engine = open_variant("tensorrt", toy, text(toy), EngineOptions())
    for length in (1, 5, 12, 5, 5, 5, 12):
        slot = engine.slot(2, {"L": length})
        slot.inputs["input_ids"][:] = np.random.default_rng(length).integers(1, 64, (2, length))
        np.testing.assert_allclose(
            run(engine, slot)["embeddings"], text_reference(slot.inputs["input_ids"]), **EXACT
        )
        del slot
    (fake,) = engine.engine.trt.engines
    assert len(fake.trt.contexts) == 1
    assert "cudaStreamBeginCapture" not in gpu.calls, "a shape that changes is not recorded"
    with pytest.raises(EngineError, match="port input_ids: no value for its size 'L'"):
        engine.slot(2)
    engine.close()


def test_a_whole_model_on_it(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), ({"N": (1, 4, 4)},))
    build(toy, text(toy), TEXT)
    pictures = [picture(seed) for seed in range(11)]
    with edgeclip.load(toy, engine="onnxruntime-cpu") as model:
        want = model.embed_images(pictures), model.embed_texts(["a cat", "a photo of a dog", "dog"])
    with edgeclip.load(toy, engine="tensorrt", threads=2) as model:
        # batches of 16 where the engine was built for 4: callers keep to what it takes
        found = (
            model.embed_images(pictures, batch_size=16),
            model.embed_texts(["a cat", "a photo of a dog", "dog"]),
        )
        assert {used["engine"] for used in model.info().towers.values()} == {"tensorrt"}
        assert model.classify(pictures[0], ["a cat", "a dog"]).label in ("a cat", "a dog")
        np.testing.assert_allclose(
            model.embed_pixels(pixels(9), batch_size=16), image_reference(pixels(9)), **EXACT
        )
    for one, other in zip(found, want, strict=True):
        np.testing.assert_allclose(one, other, **EXACT)


def test_heads_on_it(gpu: StandIn, toy: Bundle, tmp_path: Path) -> None:
    """Labels baked in, and prompts given at run time: several inputs, of several types, and sizes beside N."""
    pictures, labels = [picture(seed) for seed in range(5)], ["cat", "dog", "bicycle"]
    with edgeclip.load(toy, engine="onnxruntime-cpu") as model:
        pack, want = model.make_labels(labels), model.classify(pictures, labels)
    baked = bake(toy, tmp_path / "baked", pack, only_heads=True).bundle
    for variant in baked.manifest.variants:
        prompts = {"B": (1, 1, 4), "P": (1, 4, 16)} if variant.axes.head == "prompts" else {}
        build(baked, variant, ({"N": (1, 2, 4), **prompts},) if variant.tower == "image" else TEXT)
    with edgeclip.load(baked, engine="tensorrt") as model:
        for found in (model.classify(pictures), model.classify(pictures, labels)):
            np.testing.assert_allclose([one.scores for one in found], [one.scores for one in want], **EXACT)
        assert set(model.info().towers) >= {"labels", "prompts"}


# --- order


def test_two_slots_in_flight_keep_their_results(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    for _ in range(3):
        slots = [filled(engine, 4, seed) for seed in range(3)]
        for slot in slots:
            engine.submit(slot)
        assert not any(slot.outputs["embeddings"].any() for slot in slots) or _ > 0, "submit does not wait"
        for slot in reversed(slots):
            engine.wait(slot)
            check(slot)
    engine.close()


@pytest.mark.parametrize(
    "line",
    [
        "self._place.stream.after(self._filled)",  # computes before its inputs are there
        "self._stream.after(self._computed)",  # copies out before it has computed
        "self._stream.mark(self._filled)",
    ],
)
def test_a_missing_event_gives_wrong_numbers(
    broken_gpu: StandIn, toy: Bundle, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    monkeypatch.setattr(Lane, "submit", broken(Lane.submit, line, "pass"))

    def several() -> None:
        for seed in range(4):
            slot = filled(engine, 4, seed)
            run(engine, slot)
            check(slot)

    with pytest.raises((AssertionError, EngineError)):
        several()


def test_the_next_batch_is_decoded_while_the_gpu_works(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    order: list[str] = []

    def noted(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        plain = getattr(owner, name)
        patch.setattr(owner, name, lambda *a, **k: (order.append(name), plain(*a, **k))[1])

    with edgeclip.load(toy, engine="tensorrt", threads=1) as model:
        model.warmup(text=False)
        with pytest.MonkeyPatch.context() as patch:
            noted(patch, model._towers[0].engine, "submit")
            noted(patch, model._towers[0].engine, "wait")
            noted(patch, model._pictures.preprocessor, "into")
            model.embed_images([picture(seed) for seed in range(3)], batch_size=1)
    assert order == ["into", "submit", "into", "submit", "wait", "into", "submit", "wait", "wait"]


def test_eight_threads_share_one_engine(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    build(toy, text(toy), TEXT, scratch=5000)
    with edgeclip.load(toy, engine="onnxruntime-cpu", threads=1) as model:
        want = [(model.embed_images(picture(seed)), model.embed_texts(f"a cat {seed}")) for seed in range(6)]

    with edgeclip.load(toy, engine="tensorrt", threads=1) as model, ThreadPoolExecutor(8) as pool:

        def one(i: int) -> tuple[Any, Any]:
            return model.embed_images(picture(i % 6)), model.embed_texts(f"a cat {i % 6}")

        found = list(pool.map(one, range(160)))
    for i, rows in enumerate(found):
        for row, other in zip(rows, want[i % 6], strict=True):
            np.testing.assert_allclose(row, other, **EXACT)


# --- CUDA graphs


def test_a_shape_that_comes_again_is_recorded(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    for count, launches in ((8, 0), (8, 1), (7, 2), (6, 3), (5, 3), (1, 3), (8, 4), (5, 5)):
        slot = filled(engine, count, count)
        run(engine, slot)
        check(slot)
        assert gpu.calls.get("cudaGraphLaunch", 0) == launches, f"{count} rows"
        del slot
    # 6 and 7 rows ran as 8; 5 as 5, for 8 would waste more than a quarter
    assert len(engine.engine.trt.contexts) == 3
    engine.close()


def test_they_can_be_switched_off(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    build(toy, image(toy), IMAGE, "tensorrt-rtx")
    for name in ("tensorrt", "tensorrt-rtx"):
        engine = opened(toy, name, provider_options={"cuda_graph": "0"})
        for seed in range(3):
            run(engine, slot := filled(engine, 4, seed))
            check(slot)
        config = engine.engine.runtime_config
        assert config is None or config.cuda_graph_strategy.name == "DISABLED"
        engine.close()
    assert "cudaStreamBeginCapture" not in gpu.calls


def test_what_cannot_be_recorded_is_queued_and_said(
    gpu: StandIn, toy: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    build(toy, image(toy), IMAGE, recordable=False)
    engine = opened(toy)
    slot = engine.slot(4)
    for seed in range(4):
        slot.inputs["pixels"][:] = pixels(4, seed)
        run(engine, slot)
        check(slot)
    assert gpu.calls["cudaStreamBeginCapture"] == 1, "asked once only"
    assert (
        "image-fp32: its work cannot be recorded as a CUDA graph and is queued piece by piece" in caplog.text
    )
    engine.close()


def test_rtx_records_by_itself_and_its_kernels_are_kept(gpu: StandIn, toy: Bundle, cache: Path) -> None:
    build(toy, image(toy), IMAGE, "tensorrt-rtx")
    for before in (b"", b"kernels of this device"):
        engine = opened(toy, "tensorrt-rtx")
        config = engine.engine.runtime_config
        assert (config.cuda_graph_strategy.name, config.cache.kernels) == ("WHOLE_GRAPH_CAPTURE", before)
        run(engine, filled(engine, 2))
        run(engine, filled(engine, 2))
        engine.close()
    assert "cudaGraphLaunch" not in gpu.calls
    (kept,) = (store_of(toy, EngineOptions()).folder / "runtime").glob("*.cache")
    kept.write_bytes(kept.read_bytes()[:-1] + b"X")  # code that nobody here compiled
    engine = opened(toy, "tensorrt-rtx")
    assert engine.engine.runtime_config.cache.kernels == b""
    engine.close()


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
    assert gpu.calls["cudaStreamBeginCapture"] == 2
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


def test_weights_come_back_from_the_graph(gpu: StandIn, toy: Bundle, tmp_path: Path) -> None:
    own = make_bundle(tmp_path / "own")
    build(own, image(own), IMAGE, changes={"strip_weights": True}, stripped=True)
    engine = open_variant("tensorrt", own, image(own), EngineOptions())
    run(engine, slot := filled(engine, 3))
    check(slot)
    engine.close()
    graph = own.path(image(own).files[0])
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(EngineError, match=r"image-fp32\.onnx: not what the engine was built from"):
        open_variant("tensorrt", own, image(own), EngineOptions())


def test_a_plan_whose_weights_cannot_be_filled_in(gpu: StandIn, toy: Bundle) -> None:
    other = toy.path(text(toy).files[0]).read_bytes()
    build(toy, image(toy), IMAGE, changes={"strip_weights": True}, stripped=True, graph=other)
    with pytest.raises(EngineError, match=r"image-fp32: tensorrt 10\.3\.0\.30 cannot fill in its weights"):
        opened(toy)


def test_an_engine_of_an_earlier_release_runs_by_that_ones_library(
    gpu: StandIn, toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(toy, image(toy), IMAGE, changes={"version_compatible": True})
    module = load_library("tensorrt").module
    module.__version__ = "10.9.0.34"
    with pytest.raises(
        EngineError, match=r"built by 10\.3\.0\.30 for later releases, .*'lean_runtime': .* or build again\."
    ):
        opened(toy)
    loaded: list[str] = []

    def load(runtime: Any, path: str) -> Any:
        loaded.append(path)
        return runtime if path == "lean.so" else None

    monkeypatch.setattr(type(module.Runtime(None)), "load_runtime", load, raising=False)
    with pytest.raises(EngineError, match=r"but other\.so is not its lean runtime"):
        opened(toy, provider_options={"lean_runtime": "other.so"})
    engine = opened(toy, provider_options={"lean_runtime": "lean.so"})
    run(engine, slot := filled(engine, 3))
    check(slot)
    engine.close()
    assert loaded == ["other.so", "lean.so"]


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


@pytest.mark.parametrize("batch", [0, 33, 1000])
def test_a_batch_beyond_the_engine(gpu: StandIn, toy: Bundle, batch: int) -> None:
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    with pytest.raises(
        EngineError,
        match=rf"image-fp32: no profile for N={batch}; it was built for N 1-32\. .*edgeclip build",
    ):
        engine.slot(batch)
    engine.close()


# --- proof


class TestProof:
    """At its first opening on a device an engine is inspected and the golden inputs are replayed."""

    @pytest.fixture
    def proofs(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        prove = pytest.importorskip("edgeclip.runtime.tensorrt.prove")
        made: list[str] = []
        plain = prove.prove
        monkeypatch.setattr(prove, "prove", lambda *a, **k: (made.append(a[1].id), plain(*a, **k))[1])
        return made

    def test_once_and_written_down(self, gpu: StandIn, proofs: list[str]) -> None:
        nano = edgeclip.open_bundle("nano")
        variant = nano.manifest.variants_of("image")[0]
        build(nano, variant, IMAGE, proven=False)
        for _ in range(2):
            open_variant("tensorrt", nano, variant, EngineOptions()).close()
        assert proofs == [variant.id]
        (record,) = store_of(nano, EngineOptions()).records()
        assert record.fidelity is not None
        assert record.fidelity.samples > 1
        assert 0 < record.fidelity.relative_distance < 0.01
        assert record.engine is not None
        assert record.engine.layers == 1

    def test_an_engine_that_gives_something_else_is_refused(
        self, gpu: StandIn, proofs: list[str], tmp_path: Path
    ) -> None:
        import onnx

        nano = edgeclip.open_bundle("nano")
        variant = nano.manifest.variants_of("image")[0]
        model = onnx.load(nano.path(variant.files[0]))
        for weight in model.graph.initializer:
            if weight.dims and len(weight.dims) > 1:
                values = onnx.numpy_helper.to_array(weight) * np.float32(1.5)
                weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        build(nano, variant, IMAGE, proven=False, graph=model.SerializeToString())
        with pytest.raises(CheckFailed, match=variant.id) as error:
            open_variant("tensorrt", nano, variant, EngineOptions())
        assert len(proofs) == 1
        assert tensorrt_place._places[0].scratch.size == 256, "closed, though the error still holds it"
        del error
        (record,) = store_of(nano, EngineOptions()).records()
        assert record.fidelity is None


# --- refusals


def test_without_a_gpu(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus=0)
    with pytest.raises(EngineError, match=r"GPU 0: not found; there is none\. See `edgeclip doctor`"):
        opened(toy)
    forget()


def test_without_the_library(toy: Bundle, gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match="tensorrt is not installed"):
        opened(toy)


def test_nothing_was_built(gpu: StandIn, toy: Bundle) -> None:
    assert local_variants("tensorrt", toy, EngineOptions()) == []
    with pytest.raises(
        EngineError, match=r"no engine of image-fp32 for tensorrt.*Run: edgeclip build .* --target tensorrt"
    ):
        opened(toy)
    with pytest.raises(EngineError, match=r"GPU 3: not found; there is 0 \(NVIDIA Stand-in 0\)"):
        opened(toy, device=3)


def test_local_variants_are_found_without_a_gpu(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    calls = dict(gpu.calls)
    assert [variant.id for variant in local_variants("tensorrt", toy, EngineOptions())] == ["image-fp32"]
    assert local_variants("tensorrt-rtx", toy, EngineOptions()) == []
    assert gpu.calls == calls, "asks CUDA nothing: the process may still fork"


def test_built_when_asked(gpu: StandIn, toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("edgeclip.runtime.tensorrt.api")
    asked = []

    def build_engines(bundle: Bundle, target: str, settings: Any) -> None:
        asked.append((target, settings.variants, settings.device))
        build(toy, image(toy), IMAGE)

    monkeypatch.setattr(api, "build_engines", build_engines)
    for _ in range(2):
        opened(toy, build=True).close()
    assert asked == [("tensorrt", ("image-fp32",), 0)]


@pytest.mark.parametrize(
    "options",
    [
        {"provider_options": {"trt_fp16_enable": "1"}},
        {"provider_options": {"cuda_graph": "yes"}},
        {"session_options": {"session.intra_op.allow_spinning": "0"}},
    ],
)
def test_options_of_others(gpu: StandIn, toy: Bundle, options: Any) -> None:
    with pytest.raises(
        EngineError, match=r"tensorrt: no option '.*'\. It has cuda_graph, 0 or 1, and lean_runtime, a path\."
    ):
        opened(toy, **options)


def test_a_plan_that_does_not_open(gpu: StandIn, toy: Bundle) -> None:
    record = build(toy, image(toy), IMAGE)
    store_of(toy, EngineOptions()).put(record, b"no plan at all")
    with pytest.raises(EngineError) as error:
        opened(toy)
    assert re.fullmatch(
        r"image-fp32: tensorrt 10\.3\.0\.30 cannot open it: magic tag does not match\. Build it again\.",
        str(error.value),
    )


def test_a_plan_that_was_changed_is_never_deserialised(gpu: StandIn, toy: Bundle) -> None:
    record = build(toy, image(toy), IMAGE)
    path = store_of(toy, EngineOptions()).plan_path(record)
    path.write_bytes(path.read_bytes().replace(b"1000", b"1001"))
    with pytest.raises(EngineError, match="changed"):
        opened(toy)
    import sys

    assert sys.modules["tensorrt"].engines == []


def test_an_engine_of_other_ports(gpu: StandIn, toy: Bundle) -> None:
    """The trap of int64 ids: 32-bit numbers in a 64-bit buffer are garbage without a word."""
    variant = text(toy)
    build(toy, variant, TEXT)
    changed = replace(variant, inputs=(Port("input_ids", "int64", ("N", "L")),))
    engine = open_variant("tensorrt", toy, variant, EngineOptions())
    with pytest.raises(
        EngineError, match=r"input 'input_ids': the manifest says int64 \('N', 'L'\), the engine has int32"
    ):
        tensorrt.TensorRt(engine._library, changed, EngineOptions(), engine.engine, None)
    changed = replace(variant, outputs=(Port("embeddings", "float32", ("N", 9)),))
    with pytest.raises(
        EngineError, match=r"output 'embeddings': .*\('N', 9\), the engine has float \(-1, 8\)"
    ):
        tensorrt.TensorRt(engine._library, changed, EngineOptions(), engine.engine, None)
    changed = replace(variant, outputs=(*variant.outputs, Port("scores", "float32", ("N",))))
    with pytest.raises(
        EngineError, match=r"the engine has \['embeddings', 'input_ids'\], the manifest lists"
    ):
        tensorrt.TensorRt(engine._library, changed, EngineOptions(), engine.engine, None)
    engine.close()


def test_no_room_on_the_gpu(monkeypatch: pytest.MonkeyPatch, toy: Bundle) -> None:
    install(monkeypatch, memory=1 << 20)
    build(toy, image(toy), IMAGE, scratch=1 << 30)
    with pytest.raises(EngineError, match=r"GPU 0: no room for 1073\.7 MB, 1\.0 of 1\.0 MB are free"):
        opened(toy)
    forget()


def test_it_fails_while_running(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    slot = filled(engine, 4)
    lane = slot.binding[0]
    gpu.streams[engine._place.stream.handle].device = 5  # as after a reset
    with pytest.raises(EngineError, match=r"^image-fp32: .*invalid handle"):
        engine.submit(slot)
    gpu.streams[engine._place.stream.handle].device = 0
    lane._context.engine.stripped = True
    with pytest.raises(EngineError, match=r"^image-fp32: TensorRT failed to run it\.$"):
        engine.submit(slot)
    engine.close()


def test_closed(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    slot = filled(engine, 4)
    engine.submit(slot)
    engine.close()  # waits
    engine.wait(slot)
    check(slot)
    for use in (lambda: engine.submit(slot), lambda: engine.slot(1)):
        with pytest.raises(EngineError, match=r"image-fp32: this engine was closed"):
            use()


def test_a_forked_child_opens_none(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    with edgeclip.load(toy, engine="tensorrt", threads=1) as model:
        row = model.embed_images(picture(1))
        held = threading.Event()

        def hold() -> None:  # locks that a thread of the parent holds stay locked in the child
            with tensorrt_place._lock, tensorrt_place._places[0].lock:
                held.set()
                release.wait()

        release = threading.Event()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            try:
                model.embed_images(picture(1))
            except EngineError as error:
                os.write(writing, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        release.set()
        thread.join()
        assert re.match(
            r"CUDA was used by process \d+ before it forked this one", os.read(reading, 1000).decode()
        )
        np.testing.assert_array_equal(model.embed_images(picture(1)), row)
    os.close(reading)
    os.close(writing)


def test_errors_are_logged_once_by_nobody(
    gpu: StandIn, toy: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """What TensorRT said stands in the error, and not on the screen as well."""
    caplog.set_level(logging.WARNING)
    record = build(toy, image(toy), IMAGE)
    store_of(toy, EngineOptions()).put(record, b"no plan")
    with pytest.raises(EngineError):
        opened(toy)
    assert caplog.text == ""
