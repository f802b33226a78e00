"""The CUDA engine against the CPU engine, on a machine with an NVIDIA GPU and onnxruntime-gpu: pytest -m gpu."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import edgeclip
from edgeclip.runtime.engines import open_engine, run
from edgeclip.runtime.engines.onnxruntime_cuda import PROVIDER, present
from tests.runtime.toy import SIDE, image_reference, make_bundle, picture, text_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not present(), reason="needs an NVIDIA GPU and onnxruntime-gpu"),
]
TOLERANCE = 1e-5  # sums in another order; TF32 would be 1e-3


def test_it_is_chosen_and_really_used(tmp_path: Path) -> None:
    with edgeclip.load(make_bundle(tmp_path / "toy")) as model:
        model.warmup()
        for used in model.info().towers.values():
            assert (used["engine"], used["provider"]) == ("onnxruntime-cuda", PROVIDER)


def test_rows_equal_the_reference_at_every_batch(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy")
    variant = bundle.manifest.variants_of("image")[0]
    engine = open_engine("onnxruntime-cuda", bundle.path(variant.files[0]), variant)
    pixels = np.random.default_rng(0).normal(size=(8, 3, SIDE, SIDE)).astype(np.float32)
    for count in (1, 3, 8):
        slot = engine.slot(count)
        slot.inputs["pixels"][:] = pixels[:count]
        np.testing.assert_allclose(
            run(engine, slot)["embeddings"], image_reference(pixels[:count]), atol=TOLERANCE, rtol=0
        )
    engine.close()


def test_two_slots_in_flight_keep_their_results(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy")
    variant = bundle.manifest.variants_of("image")[0]
    engine = open_engine("onnxruntime-cuda", bundle.path(variant.files[0]), variant)
    random = np.random.default_rng(1)
    slots = [engine.slot(4) for _ in range(2)]
    for slot in slots:
        slot.inputs["pixels"][:] = random.normal(size=(4, 3, SIDE, SIDE))
        engine.submit(slot)
    for slot in slots:
        engine.wait(slot)
        want = image_reference(slot.inputs["pixels"])
        np.testing.assert_allclose(slot.outputs["embeddings"], want, atol=TOLERANCE, rtol=0)


def test_texts_of_every_length(tmp_path: Path) -> None:
    with edgeclip.load(make_bundle(tmp_path / "toy"), engine="onnxruntime-cuda") as model:
        texts = ["cat", "a photo of a dog", "a cat a cat a cat a cat"]
        encoded = model.encode_texts(texts)
        np.testing.assert_allclose(
            model.embed_texts(texts), text_reference(encoded.input_ids), atol=TOLERANCE, rtol=0
        )


def test_threads_share_one_model(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy")
    pictures = [picture(seed) for seed in range(24)]
    with edgeclip.load(bundle, engine="onnxruntime-cpu") as model:
        want = model.embed_images(pictures)
    with edgeclip.load(bundle, engine="onnxruntime-cuda") as model, ThreadPoolExecutor(6) as pool:
        found = np.stack(list(pool.map(model.embed_images, pictures)))
    np.testing.assert_allclose(found, want, atol=TOLERANCE, rtol=0)


def test_nano_gives_what_it_gives_on_the_cpu() -> None:
    pictures = [picture(seed, 96, 80) for seed in range(6)]
    found = []
    for engine in ("onnxruntime-cpu", "onnxruntime-cuda"):
        with edgeclip.load("nano", engine=engine) as model:
            found.append((model.embed_images(pictures), model.embed_texts(["a cat", "two dogs"])))
    for cpu, cuda in zip(*found, strict=True):
        np.testing.assert_allclose(cuda, cpu, atol=TOLERANCE, rtol=0)


def test_half_precision_is_as_near_as_it_may_be(tmp_path: Path) -> None:
    """The limit of the design: a hundredth of the distance between different pictures."""
    ir = pytest.importorskip("onnx_ir")
    from edgeclip.export.precision import Request, convert

    bundle = make_bundle(tmp_path / "toy")
    variant = bundle.manifest.variants_of("image")[0]
    pixels = np.random.default_rng(2).normal(size=(8, 3, SIDE, SIDE)).astype(np.float32)
    model = ir.load(bundle.path(variant.files[0]))
    ir.save(convert(model, "fp16", Request(inputs=pixels)).model, tmp_path / "half.onnx")
    engine = open_engine("onnxruntime-cuda", tmp_path / "half.onnx", variant)
    slot = engine.slot(len(pixels))
    slot.inputs["pixels"][:] = pixels
    found, want = run(engine, slot)["embeddings"], image_reference(pixels)
    between = np.median([np.linalg.norm(a - b) for i, a in enumerate(want) for b in want[:i]])
    relative = np.linalg.norm(found - want, axis=1).mean() / between
    assert 1e-5 < relative < 1e-2  # fp32 would be 1e-6: then it did not run in fp16
