"""The runtime says how long its parts take: each is heard of once, inside the call, and no result changes by it."""

from __future__ import annotations

import ctypes
import gc
import io
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageFile

from edgeclip.bundle import Bundle
from edgeclip.errors import EngineError
from edgeclip.runtime import cuda, stages
from edgeclip.runtime.engines import EngineOptions, open_variant, run, tensorrt_place
from edgeclip.runtime.engines.onnxruntime_cuda import OnnxRuntimeCuda
from edgeclip.runtime.engines.tensorrt_lane import Lane
from edgeclip.runtime.images.preprocess import Preprocessor
from edgeclip.runtime.model import Model, load
from edgeclip.runtime.stages import Span, listen, shares
from tests.mutants import broken
from tests.runtime.tensorrt import running
from tests.runtime.tensorrt.cuda_stand_in import StandIn
from tests.runtime.tensorrt.stand_ins import IMAGE, build, forget, install
from tests.runtime.toy import image_reference, make_bundle, picture

LABELS = ["a cat", "a dog", "a bicycle"]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with load(make_bundle(tmp_path / "bundle"), threads=2) as found:
        yield found


def jpeg(seed: int, side: int = 400) -> bytes:
    """Large enough that two threads share its rows."""
    file = io.BytesIO()
    Image.fromarray(picture(seed, side, side)).save(file, "JPEG")
    return file.getvalue()


def heard(call: Callable[[], object]) -> tuple[list[Span], int, int]:
    with listen() as spans:
        begun = perf_counter_ns()
        call()
        return list(spans), begun, perf_counter_ns()


# --- what belongs to whom


def test_at_each_moment_what_began_last_counts() -> None:
    spans = [
        (10, 90, "head"),  # holds all below it
        (20, 50, "text tower"),
        (25, 30, "copy in"),
        (40, 60, "copy out"),  # of another thread, beside the tower
        (95, 130, "decode"),  # goes on after the call
        (100, 100, "preprocess"),
    ]
    assert shares(spans, 0, 100) == {
        "head": 10 + 30, "text tower": 5 + 10, "copy in": 5, "copy out": 20, "decode": 5,
    }  # fmt: skip
    assert shares(spans, 40, 50) == {"copy out": 10}
    assert shares([(5, 9, "outer"), (5, 7, "inner")], 0, 10) == {"inner": 2, "outer": 2}
    assert shares([], 0, 100) == {}


def test_parts_counted_twice_would_be_seen() -> None:
    twice = broken(shares, "name = max(inside)[2]", "name = min(inside)[2]")
    assert twice([(0, 10, "outer"), (2, 5, "inner")], 0, 10) != shares(
        [(0, 10, "outer"), (2, 5, "inner")], 0, 10
    )


# --- calls of a model


def test_each_part_of_a_call_is_heard_of_once(model: Model) -> None:
    data = jpeg(1)
    spans, begun, ended = heard(lambda: model.classify(data, LABELS))
    first = Counter(name for _, _, name in spans)
    assert first == {
        "open": 2, "tokenize": 1, "text tower": 1, "decode": 1, "preprocess": 1, "image tower": 2, "head": 2,
    }  # submitted and waited for; planned and ranked  # fmt: skip
    spans, begun, ended = heard(lambda: model.classify(data, LABELS))
    assert set(first) - {name for _, _, name in spans} == {"open", "tokenize", "text tower"}, "kept"
    assert all(begun <= b <= e <= ended for b, e, _ in spans)
    found = shares(spans, begun, ended)
    assert set(found) <= set(stages.STAGES)
    assert 0 < sum(found.values()) < ended - begun
    spans, _, _ = heard(lambda: model.embed_pixels(np.zeros((1, 3, 32, 32), np.float32)))
    assert [name for _, _, name in spans] == ["image tower"]


def test_pictures_beside_each_other_take_no_longer_than_the_call(model: Model) -> None:
    several = [jpeg(seed) for seed in range(6)]
    spans, begun, ended = heard(lambda: model.classify(several, LABELS, batch_size=3))
    assert Counter(name for _, _, name in spans)["decode"] == 6
    assert sum(shares(spans, begun, ended).values()) < ended - begun


@pytest.mark.parametrize("many", [False, True])
def test_results_are_the_same_bits(model: Model, many: bool) -> None:
    given: Any = [jpeg(seed) for seed in range(5)] if many else jpeg(3)
    before, after = model.classify(given, LABELS), []
    heard(lambda: after.append(model.classify(given, LABELS)))
    assert after == [before]


def test_nobody_listens_unless_asked(model: Model) -> None:
    assert not stages.listening()
    assert stages.begin() == 0
    with listen() as spans:
        begun = stages.begin()
        with pytest.raises(RuntimeError, match="timed already"), listen():
            pass
        assert stages.listening()
    stages.end("head", begun)  # begun while somebody listened, ended after
    with listen() as again:
        stages.end("head", 0)  # and the other way round
        with pytest.raises(Exception, match="cannot be decoded"):
            model.classify(jpeg(1)[:900], LABELS)
    assert spans == []
    assert "decode" not in {name for _, _, name in again}, "what fails has no time"


# --- pixels are decoded inside "decode", though Pillow opens a file without reading them


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only decoding and resizing move."""
    now = [1]
    monkeypatch.setattr(stages, "perf_counter_ns", lambda: now[0])

    def later(function: Callable[..., Any], by: int) -> Callable[..., Any]:
        def called(image: Any, *arguments: Any) -> Any:
            now[0] += by if by < 1000 or image.tile else 0  # what is read already is not read again
            return function(image, *arguments)

        return called

    monkeypatch.setattr(ImageFile.ImageFile, "load", later(ImageFile.ImageFile.load, 1000))
    module = import_module("edgeclip.runtime.images.preprocess")
    monkeypatch.setattr(module, "resize_crop", later(module.resize_crop, 30))
    monkeypatch.setattr(module, "reduce_first", later(module.reduce_first, 4))


def parts_of(bundle: Bundle, data: Any) -> dict[str, int]:
    spec = bundle.manifest.preprocessing
    assert spec is not None
    with listen() as spans:
        Preprocessor(spec).into(data, np.empty((3, 32, 32), np.float32))
    return shares(spans, 0, 1 << 40)


@pytest.mark.usefixtures("slow")
def test_lazy_pictures_are_read_in_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    found = parts_of(bundle, jpeg(1))
    assert found["decode"] >= 1000
    assert found["preprocess"] == 34
    assert parts_of(bundle, Image.open(io.BytesIO(jpeg(1))))["decode"] >= 1000, (
        "a PIL image that is not read yet"
    )
    module = import_module("edgeclip.runtime.images.decode")
    monkeypatch.setattr(module, "_load", broken(module._load, "    image.load()", "    image.size"))
    assert parts_of(bundle, jpeg(1)) != found


# --- copies to a GPU and back


def test_copies_of_onnxruntime_lie_inside_the_tower(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    variant = bundle.manifest.variants_of("image")[0]
    session = onnxruntime.InferenceSession(bundle.path(variant.files[0]), providers=["CPUExecutionProvider"])
    engine = OnnxRuntimeCuda(session, variant, 1, ("cpu", 0), onnxruntime)
    slot = engine.slot(2)
    slot.inputs["pixels"][:] = running.pixels(2)
    plain = run(engine, slot)["embeddings"].copy()
    spans, _, _ = heard(lambda: run(engine, slot))
    assert [name for _, _, name in spans] == ["copy in", "copy out"]
    assert spans[0][1] < spans[1][0]
    np.testing.assert_array_equal(slot.outputs["embeddings"], plain)
    np.testing.assert_allclose(plain, image_reference(slot.inputs["pixels"]), rtol=0, atol=1e-6)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StandIn]:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    yield install(monkeypatch, **getattr(request, "param", {}))
    tensorrt_place._places.clear()
    gc.collect()  # what is freed later would find no stand-in
    forget()


def test_onnxruntime_reads_and_writes_pinned_memory(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def memcpy(array: np.ndarray[Any, Any], address: int) -> None:  # the "GPU" is onnxruntime's CPU here
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    monkeypatch.setattr(cuda, "fetch", memcpy)
    bundle = make_bundle(tmp_path / "bundle")
    variant = bundle.manifest.variants_of("image")[0]
    session = onnxruntime.InferenceSession(bundle.path(variant.files[0]), providers=["CPUExecutionProvider"])
    engine = OnnxRuntimeCuda(session, variant, 1, ("cpu", 0), onnxruntime)
    engine._pins = True  # as on a GPU with cuda-bindings
    slots = [engine.slot(2)]
    held = {array.ctypes.data for array in (*slots[0].inputs.values(), *slots[0].outputs.values())}
    assert held <= gpu.host.keys()
    assert not slots[0].inputs["pixels"].any()
    gpu.memory = 0
    slots.append(engine.slot(3))  # no room: ordinary memory serves
    assert not {array.ctypes.data for array in slots[1].inputs.values()} & gpu.host.keys()
    for slot in slots:
        slot.inputs["pixels"][:] = running.pixels(len(slot.inputs["pixels"]))
        found = run(engine, slot)["embeddings"]
        np.testing.assert_allclose(found, image_reference(slot.inputs["pixels"]), rtol=0, atol=1e-6)


def test_onnxruntime_records_no_graph_of_calls_that_share_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    options = EngineOptions(provider_options={"enable_cuda_graph": "1"})
    with pytest.raises(EngineError, match=r"enable_cuda_graph: onnxruntime would replay .* Leave it out"):
        open_variant("onnxruntime-cuda", bundle, bundle.manifest.variants_of("image")[0], options)


def made(work: Callable[[], object]) -> list[str]:
    """What it asks of CUDA that moves or awaits something, in order."""
    kept = {"cudaMemcpyAsync": "copy", "cudaGraphLaunch": "launch", "cudaStreamSynchronize": "wait"}
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        call = cuda.call
        patch.setattr(cuda, "call", lambda name, *a, **k: (asked.append(name), call(name, *a, **k))[1])
        work()
    return [kept[name] for name in asked if name in kept]


def engine_on(gpu: StandIn, tmp_path: Path) -> tuple[Any, Any]:
    """An engine of TensorRT, and a slot that ran until its work was recorded."""
    bundle = make_bundle(tmp_path / "bundle")
    build(bundle, running.image(bundle), IMAGE)
    engine = running.opened(bundle)
    slot = running.filled(engine, 3)
    for _ in range(3):
        run(engine, slot)
    return engine, slot


def test_tensorrt_waits_between_copies_and_work_while_they_are_timed(gpu: StandIn, tmp_path: Path) -> None:
    engine, slot = engine_on(gpu, tmp_path)
    plain = slot.outputs["embeddings"].copy()
    assert made(lambda: run(engine, slot)) == ["copy", "launch", "copy", "wait"]
    spans: list[Span] = []
    calls = made(lambda: spans.extend(heard(lambda: run(engine, slot))[0]))
    assert calls == ["copy", "wait", "launch", "wait", "copy", "wait", "wait"]
    assert [name for _, _, name in spans] == ["copy in", "copy out"]
    running.check(slot)
    np.testing.assert_array_equal(slot.outputs["embeddings"], plain)
    engine.close()


def test_copies_that_were_only_queued_would_be_seen(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, slot = engine_on(gpu, tmp_path)
    good = made(lambda: heard(lambda: run(engine, slot)))
    monkeypatch.setattr(Lane, "_timed", broken(Lane._timed, "self._stream.synchronize()", "pass"))
    assert made(lambda: heard(lambda: run(engine, slot))) != good
    engine.close()


@pytest.mark.parametrize("gpu", [{"unified": True}], indirect=True)
def test_memory_that_is_shared_is_not_copied(gpu: StandIn, tmp_path: Path) -> None:
    engine, slot = engine_on(gpu, tmp_path)
    assert heard(lambda: run(engine, slot))[0] == []
    running.check(slot)
    engine.close()
