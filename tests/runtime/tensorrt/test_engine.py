"""TensorRT engines running, on stand-ins for the GPU and the library: values, order, CUDA graphs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip.bundle import Bundle
from edgeclip.errors import EngineError
from edgeclip.export.bake import bake
from edgeclip.runtime.engines import (
    EngineOptions,
    open_variant,
    run,
)
from edgeclip.runtime.engines.tensorrt_lane import Lane
from edgeclip.runtime.tensorrt.store import store_of
from tests.mutants import broken
from tests.runtime.tensorrt.cuda_stand_in import StandIn
from tests.runtime.tensorrt.running import EXACT, check, filled, image, opened, pixels, text
from tests.runtime.tensorrt.stand_ins import IMAGE, TEXT, build
from tests.runtime.toy import image_reference, picture, text_reference

pytestmark = pytest.mark.usefixtures("cache")


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


def padded(toy: Bundle) -> Any:
    """An engine of four rows at least, and a call of three that it has begun."""
    build(toy, text(toy), ({"N": (4, 4, 8), "L": (1, 5, 12)},))
    engine = open_variant("tensorrt", toy, text(toy), EngineOptions())
    slot = engine.slot(3, {"L": 5})
    slot.inputs["input_ids"][:] = np.random.default_rng(1).integers(1, 64, (3, 5))
    engine.submit(slot)
    return engine, slot


def test_rows_that_only_pad_hold_ids_of_the_table(gpu: StandIn, toy: Bundle) -> None:
    """They are looked up as well: by a number that no token has, beyond the table, and the GPU is lost to the process."""
    engine, slot = padded(toy)
    engine.wait(slot)
    np.testing.assert_allclose(slot.outputs["embeddings"], text_reference(slot.inputs["input_ids"]), **EXACT)
    engine.close()


def test_fresh_memory_holds_other_ids(
    broken_gpu: StandIn, toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = "self._copy_in(port.name, self.host[port.name].size)"
    monkeypatch.setattr(Lane, "__init__", broken(Lane.__init__, fill, "pass"))
    engine, slot = padded(toy)
    with pytest.raises(Exception, match="indices element out of data bounds"):
        engine.wait(slot)


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
