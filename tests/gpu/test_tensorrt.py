"""TensorRT and TensorRT-RTX on a real GPU: engines are built on the spot and held against the CPU engine. pytest -m gpu."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip.bundle import Bundle
from edgeclip.errors import EdgeClipError
from edgeclip.runtime import cuda
from edgeclip.runtime.engines import EngineOptions, open_variant, run
from edgeclip.runtime.tensorrt.api import build_engines
from edgeclip.runtime.tensorrt.library import LIBRARIES, load_library
from edgeclip.runtime.tensorrt.settings import BuildSettings
from edgeclip.runtime.tensorrt.store import store_of
from tests.runtime.toy import SIDE, image_reference, make_bundle, picture, text_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda.devices(), reason="needs an NVIDIA GPU and cuda-bindings"),
]
TOLERANCE = 1e-5  # sums in another order; TF32 would be 1e-3


def usable(name: str) -> str:
    """Why a library cannot be used with this GPU; "": it can."""
    if find_spec(LIBRARIES[name]) is None:
        return f"needs {name}"
    try:
        library = load_library(name)
    except EdgeClipError as error:
        return str(error)
    arch = cuda.devices()[0].arch
    return f"{name} does not build for {arch}" if library.archs and arch not in library.archs else ""


@pytest.fixture(params=sorted(LIBRARIES))
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if why := usable(request.param):
        pytest.skip(why)
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    return str(request.param)


def built(bundle: Bundle, library: str, **settings: Any) -> Bundle:
    build_engines(bundle, library, BuildSettings(**{"precision": "fp32", "batches": ("1:4:8",), **settings}))
    return bundle


def test_it_is_proved_when_it_is_built(library: str, tmp_path: Path) -> None:
    bundle = built(edgeclip.open_bundle("nano"), library)
    records = store_of(bundle, EngineOptions()).records()
    assert {record.variant.tower for record in records} == {"image", "text"}
    for record in records:
        assert record.fidelity is not None
        assert record.fidelity.relative_distance < 0.01  # the bundle stores its weights in fp16
        assert record.engine is not None
        assert record.engine.layers > 0


def test_rows_equal_the_reference_at_every_batch(library: str, tmp_path: Path) -> None:
    bundle = built(make_bundle(tmp_path / "toy"), library)
    engine = open_variant(library, bundle, bundle.manifest.variants_of("image")[0], EngineOptions())
    for count in (1, 3, 8, 5, 6):
        slot = engine.slot(count)
        for seed in range(4):  # piece by piece, recorded, launched
            pixels = np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)
            slot.inputs["pixels"][:] = pixels
            np.testing.assert_allclose(
                run(engine, slot)["embeddings"], image_reference(pixels), atol=TOLERANCE, rtol=0
            )
    engine.close()


@pytest.mark.parametrize("batches", ["1:4:8", "4:4:8"])  # the second one pads each call
def test_texts_of_every_length(library: str, tmp_path: Path, batches: str) -> None:
    bundle = built(make_bundle(tmp_path / "toy"), library, batches=(batches,))
    with edgeclip.load(bundle, engine=library) as model:
        for texts in (["cat"], ["a photo of a dog"], ["a cat a cat a cat a cat", "dog"]):
            want = text_reference(model.encode_texts(texts).input_ids)
            np.testing.assert_allclose(model.embed_texts(texts), want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", TOLERANCE), ("fp16", 5e-3)])
def test_nano_gives_what_it_gives_on_the_cpu(library: str, precision: str, tolerance: float) -> None:
    from edgeclip.export.prepare import build_engines as build_and_convert

    bundle = edgeclip.open_bundle("nano")
    build_and_convert(bundle, library, BuildSettings(precision=precision, batches=("1:4:8",)))
    pictures = [picture(seed, 96, 80) for seed in range(11)]
    found = []
    for engine, wanted in (("onnxruntime-cpu", None), (library, precision)):
        with edgeclip.load(bundle, engine=engine, precision=wanted) as model:
            found.append((model.embed_images(pictures), model.embed_texts(["a cat", "two dogs"])))
    for cpu, gpu in zip(*found, strict=True):
        np.testing.assert_allclose(gpu, cpu, atol=tolerance, rtol=0)


def test_threads_share_one_model(library: str, tmp_path: Path) -> None:
    bundle = built(make_bundle(tmp_path / "toy"), library)
    pictures = [picture(seed) for seed in range(24)]
    with edgeclip.load(bundle, engine="onnxruntime-cpu") as model:
        want = model.embed_images(pictures)
    with edgeclip.load(bundle, engine=library) as model, ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            found = np.stack(list(pool.map(model.embed_images, pictures)))
            np.testing.assert_allclose(found, want, atol=TOLERANCE, rtol=0)


def test_weights_come_back_from_the_graph(library: str, tmp_path: Path) -> None:
    bundle = built(make_bundle(tmp_path / "toy"), library, strip_weights=True, towers=("image",))
    pixels = np.random.default_rng(0).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    with edgeclip.load(bundle, engine=library) as model:
        np.testing.assert_allclose(
            model.embed_pixels(pixels), image_reference(pixels), atol=TOLERANCE, rtol=0
        )


def test_without_cuda_graphs(library: str, tmp_path: Path) -> None:
    bundle = built(make_bundle(tmp_path / "toy"), library, towers=("image",))
    pixels = np.random.default_rng(0).normal(size=(8, 3, SIDE, SIDE)).astype(np.float32)
    options = EngineOptions(provider_options={"cuda_graph": "0"})
    with edgeclip.load(bundle, engine=library, options=options) as model:
        for _ in range(3):
            np.testing.assert_allclose(
                model.embed_pixels(pixels), image_reference(pixels), atol=TOLERANCE, rtol=0
            )
