"""Proof on a device, with the CPU engine in the device's place: spoiled outputs, narrow profiles, heads, no golden rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edgeclip
from edgeclip.bundle import Bundle, Fidelity, Variant, seal
from edgeclip.errors import CheckFailed, EngineError
from edgeclip.export.bake import bake
from edgeclip.runtime import replay
from edgeclip.runtime.engines import Engine, EngineOptions, Slot, open_variant
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.replay import limit_of
from edgeclip.runtime.tensorrt import prove as prove_module
from edgeclip.runtime.tensorrt.prove import prove
from tests.mutants import broken
from tests.runtime.test_verify import with_golden
from tests.runtime.toy import DIM, image_reference, make_bundle

Array = NDArray[Any]


class Device:
    """The CPU engine, built for few rows at once, whose outputs or inputs something spoils."""

    def __init__(
        self,
        inner: Engine,
        most: int = 99,
        spoil: Callable[[Array], Array] = lambda rows: rows,
        misread: Callable[[Array], Array] = lambda inputs: inputs,
    ) -> None:
        self.inner, self.most, self.spoil, self.misread = inner, most, spoil, misread
        self.name, self.variant, self.provider, self.threads, self.overlaps = (
            "device",
            inner.variant,
            "",
            1,
            False,
        )
        self.asked: list[int] = []

    def slot(self, batch: int, sizes: Mapping[str, int] | None = None) -> Slot:
        if batch > self.most:
            raise EngineError(f"no profile for N={batch}")
        self.asked.append(batch)
        return self.inner.slot(batch, sizes)

    def submit(self, slot: Slot) -> None:
        for array in slot.inputs.values():
            array[:] = self.misread(array)
        self.inner.submit(slot)
        for array in slot.outputs.values():
            array[:] = self.spoil(array)

    def wait(self, slot: Slot) -> None:
        self.inner.wait(slot)

    def close(self) -> None:
        self.inner.close()


def on_device(bundle: Bundle, variant: Variant, **spoilt: Any) -> Device:
    return Device(open_variant("onnxruntime-cpu", bundle, variant, EngineOptions(threads=1)), **spoilt)


def halved(rows: Array) -> Array:
    """As fp16 would round it, five times over."""
    return rows + (rows.astype(np.float16) - rows) * 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_golden(tmp_path_factory.mktemp("golden") / "b")


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("most", [99, 2, 1])
def test_the_figures_are_those_of_the_golden_rows(bundle: Bundle, tower: str, most: int) -> None:
    (variant,) = bundle.manifest.variants_of(tower)
    device = on_device(bundle, variant, most=most)
    found = prove(bundle, variant, device)
    assert (found.samples, found.rank_agreement, found.against) == (3, 1.0, "source")
    assert 0 < found.max_abs < 1e-6
    assert abs(found.cosine_min - 1) < 1e-12
    assert max(device.asked) <= most


def test_what_is_measured_is_what_came_out(bundle: Bundle) -> None:
    """Against numpy: rows turned by a known angle."""
    (variant,) = bundle.manifest.variants_of("image")
    claimed = replace(variant, axes=replace(variant.axes, precision="int8"))
    angle = 0.05
    turn = np.eye(DIM, dtype=np.float32)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found = prove(bundle, claimed, on_device(bundle, variant, spoil=lambda rows: rows @ turn))
    rows = image_reference(replay.read_golden(bundle)["pixels"])
    want = (rows * (rows @ turn.astype(np.float64))).sum(axis=1)
    np.testing.assert_allclose(found.cosine_mean, want.mean(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.max_abs, np.abs(rows @ turn - rows).max(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda rows: rows * np.nan, "gives values that are not finite"),
        (lambda rows: rows * 0.5, "gives rows that are not of unit length"),
        (lambda rows: np.broadcast_to(rows[:1], rows.shape), "gives the same row for different inputs"),
        (lambda rows: rows[::-1], "from the golden rows, 5e-06 is allowed"),
        (halved, "from the golden rows, 5e-06 is allowed"),
    ],
)
def test_spoiled_outputs(bundle: Bundle, spoil: Callable[[Array], Array], reason: str) -> None:
    (variant,) = bundle.manifest.variants_of("image")
    with pytest.raises(CheckFailed, match=rf"image-fp32 on device: .*{reason}\. The engine is not used\."):
        prove(bundle, variant, on_device(bundle, variant, spoil=spoil))


def test_ids_that_are_read_as_twice_as_wide(bundle: Bundle) -> None:
    """An int64 binding reads pairs of int32 ids: every second one is lost, and the last are what lies behind."""
    (variant,) = bundle.manifest.variants_of("text")

    def misread(ids: Array) -> Array:
        behind = np.full(ids.size // 2, 4, ids.dtype)
        return np.concatenate([ids.ravel()[::2], behind]).reshape(ids.shape)

    with pytest.raises(CheckFailed, match="from the golden rows"):
        prove(bundle, variant, on_device(bundle, variant, misread=misread))


def test_tf32_and_fp16_may_lose_what_fp32_may_not(bundle: Bundle) -> None:
    (variant,) = bundle.manifest.variants_of("image")
    device = on_device(bundle, variant, spoil=halved)
    assert prove(bundle, variant, device, tf32=True).max_abs > 1e-4
    assert (
        prove(bundle, replace(variant, axes=replace(variant.axes, precision="fp16")), device).max_abs > 1e-4
    )
    far = on_device(bundle, variant, spoil=lambda rows: rows[:, ::-1])
    with pytest.raises(
        CheckFailed, match=r"relative distance to the golden rows is \d\.\d+, 0\.02 is allowed"
    ):
        prove(bundle, variant, far, tf32=True)


def test_weights_stored_in_fp16_are_no_fault_of_the_engine() -> None:
    """The embedded bundle: fp32 products of weights that lost 1e-4, which its manifest states."""
    nano = edgeclip.open_bundle("nano")
    for variant in nano.manifest.variants:
        renamed = replace(variant, axes=replace(variant.axes, precision="fp32"))
        stated = variant.fidelity
        assert stated is not None
        found = prove(nano, renamed, on_device(nano, variant))
        assert replay.MAX_ABS_FP32 < found.max_abs <= 2 * stated.max_abs
        assert limit_of(replace(renamed, fidelity=None)).absolute == replay.MAX_ABS_FP32


def test_a_narrow_profile_that_takes_nothing(bundle: Bundle) -> None:
    (variant,) = bundle.manifest.variants_of("image")
    with pytest.raises(EngineError, match="no profile for N=1"):
        prove(bundle, variant, on_device(bundle, variant, most=0))


def test_without_golden_rows_the_cpu_is_the_measure(tmp_path: Path) -> None:
    bare = make_bundle(tmp_path / "b")
    (variant,) = bare.manifest.variants_of("image")
    built = replace(variant, id="image-fp16", axes=replace(variant.axes, precision="fp16"))
    found = prove(bare, built, on_device(bare, variant, spoil=halved))
    assert (found.against, found.samples) == ("image-fp32", 2)
    assert 1e-5 < found.max_abs < 1e-2
    with pytest.raises(CheckFailed, match="the same row for different inputs"):
        prove(bare, built, on_device(bare, variant, spoil=lambda rows: np.broadcast_to(rows[:1], rows.shape)))
    none = replace(bare, manifest=replace(bare.manifest, variants=()))
    with pytest.raises(
        CheckFailed, match="no golden rows, and nothing on the CPU to compare with: the bundle has no image"
    ):
        prove(none, built, on_device(bare, variant))


def test_golden_rows_that_were_changed_prove_nothing(tmp_path: Path) -> None:
    tampered = with_golden(tmp_path / "b")
    (variant,) = tampered.manifest.variants_of("image")
    path = tampered.path("golden.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckFailed, match=r"golden\.safetensors: SHA-256 is"):
        prove(tampered, variant, on_device(tampered, variant))


@pytest.fixture(scope="module")
def heads(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    rows = np.random.default_rng(1).normal(size=(4, DIM))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    pack = LabelPack(("a", "b", "c", "d"), ("{}",), vectors, bundle.manifest.model_id)
    return bake(bundle, tmp_path_factory.mktemp("heads") / "b", pack, places=5).bundle


@pytest.mark.parametrize("head", ["labels", "prompts"])
@pytest.mark.parametrize("most", [99, 2])
def test_heads(heads: Bundle, head: str, most: int) -> None:
    (variant,) = heads.manifest.variants_of("image", head)
    found = prove(heads, variant, on_device(heads, variant, most=most))
    assert found.samples == 3
    assert found.max_abs < 1e-6
    with pytest.raises(
        CheckFailed,
        match=r"its (cosines are .* from what the golden rows|scores are .* from what its logits) give",
    ):
        prove(heads, variant, on_device(heads, variant, most=most, spoil=_nudged))


def _nudged(array: Array) -> Array:
    """Logits a hundredth off, scores (which sum to 1) and masked ones left alone."""
    if array.shape[-1] == 4 and np.allclose(array.sum(axis=1), 1):
        return array
    return np.where(array > -1e3, array * 1.01, array)


def test_a_head_without_golden_pictures(heads: Bundle) -> None:
    (variant,) = heads.manifest.variants_of("image", "labels")
    bare = seal(heads.root, replace(heads.manifest, golden=""))
    with pytest.raises(CheckFailed, match="no golden pictures, and a head cannot be proved without"):
        prove(bare, variant, on_device(bare, variant))


def test_a_proof_that_measures_the_golden_rows_against_themselves_is_caught(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = broken(prove_module.prove, "limit.check(found, want)", "limit.check(want, want)")
    monkeypatch.setitem(globals(), "prove", mutant)
    with pytest.raises(pytest.fail.Exception):
        test_spoiled_outputs(bundle, halved, "from the golden rows")
    assert isinstance(mutant(bundle, *_first(bundle)), Fidelity)


def _first(bundle: Bundle) -> tuple[Variant, Device]:
    (variant,) = bundle.manifest.variants_of("image")
    return variant, on_device(bundle, variant)
