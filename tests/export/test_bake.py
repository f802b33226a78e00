"""Heads: their values against numpy and ONNX's reference, the bundle around them, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edgeclip.bundle import Bundle, Scores, open_bundle, seal
from edgeclip.errors import CheckFailed, InputError
from edgeclip.export import bake as baking
from edgeclip.export import weights
from edgeclip.export.bake import bake
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.verify import verify
from tests.mutants import broken
from tests.runtime.test_verify import with_golden
from tests.runtime.toy import DIM, SIDE, image_reference, make_bundle

Array = NDArray[Any]
LABELS, TOLERANCE = 5, 1e-5  # of logits at a scale of 10: ten times what cosines may be off
PIXELS = np.random.default_rng(4).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)

FLOOR = os.environ.get("EDGECLIP_FLOOR", "")  # a folder that holds onnxruntime 1.23.2
OLDEST = """
import sys
import numpy, onnxruntime
assert onnxruntime.__version__ == "1.23.2", onnxruntime.__version__
given = numpy.load(sys.argv[1] + "/in.npz")
for i, graph in enumerate(sys.argv[2:]):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feed = {node.name: given[node.name] for node in session.get_inputs()}
    numpy.save(f"{sys.argv[1]}/{i}.npy", session.run(["logits"], feed)[0])
"""


def unit(*shape: int, seed: int = 1) -> Array:
    rows = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def make_pack(count: int = LABELS, **changes: Any) -> LabelPack:
    names = tuple(f"label {i}" for i in range(count))
    return replace(LabelPack(names, ("{}",), unit(count, DIM), "1" * 64), **changes)


def run(bundle: Bundle, variant: str, **inputs: Array) -> dict[str, Array]:
    """One graph, checked whole, on ONNX's own reference implementation."""
    (found,) = [v for v in bundle.manifest.variants if v.id == variant]
    model = onnx.load(bundle.path(found.files[0]))
    onnx.checker.check_model(model, full_check=True)
    outputs = [value.name for value in model.graph.output]
    assert outputs == [port.name for port in found.outputs]
    return dict(zip(outputs, ReferenceEvaluator(model).run(None, inputs), strict=True))


def scored(logits: Array, activation: str) -> Array:
    powers = np.exp(logits)
    return (
        powers / powers.sum(axis=1, keepdims=True) if activation == "softmax" else 1 / (1 + np.exp(-logits))
    )


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def baked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle with both heads, its activation, scale and bias. The scale is the variant's own, fitted again."""
    folder = tmp_path_factory.mktemp(request.param)
    bias = -3.0 if request.param == "sigmoid" else 0.0
    made = make_bundle(folder / "toy", activation=request.param, logit_bias=bias)
    (image, text), fitted = made.manifest.variants, Scores(12.5, bias)
    made = seal(made.root, replace(made.manifest, variants=(replace(image, scores=fitted), text)))
    return bake(made, folder / "baked", make_pack()).bundle, request.param, fitted


@pytest.mark.parametrize("count", [1, 3])
def test_baked_labels_are_what_numpy_gives(baked: Any, count: int) -> None:
    bundle, activation, fitted = baked
    found = run(bundle, "image-fp32-labels", pixels=PIXELS[:count])
    want = fitted.logit_scale * image_reference(PIXELS[:count]) @ make_pack().vectors.T + fitted.logit_bias
    np.testing.assert_allclose(found["logits"], want, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found["scores"], scored(want, activation), rtol=0, atol=TOLERANCE)
    assert found["scores"].dtype == np.float32


@pytest.mark.parametrize("sets", [1, 3])
def test_prompts_are_what_numpy_gives_and_masked_ones_are_out(baked: Any, sets: int) -> None:
    bundle, _, fitted = baked
    prompts = unit(sets, 4, DIM, seed=2)
    mask = np.ones((sets, 4), bool)
    mask[:, 3], mask[0, 1] = False, False
    found = run(bundle, "image-fp32-prompts", pixels=PIXELS, prompt_embeddings=prompts, prompt_mask=mask)[
        "logits"
    ]
    cosines = np.einsum("nd,npd->np", image_reference(PIXELS), np.broadcast_to(prompts, (3, 4, DIM)))
    want = np.where(np.broadcast_to(mask, (3, 4)), fitted.logit_scale * cosines + fitted.logit_bias, -1e4)
    np.testing.assert_allclose(found, want, rtol=0, atol=TOLERANCE)


@pytest.mark.skipif(
    not Path(FLOOR or "-").is_dir(), reason="EDGECLIP_FLOOR names no folder; `make test` makes one"
)
def test_heads_open_and_agree_in_the_oldest_onnxruntime(baked: Any, tmp_path: Path) -> None:
    bundle, _, fitted = baked
    prompts = unit(3, 4, DIM, seed=2)
    np.savez(tmp_path / "in.npz", pixels=PIXELS, prompt_embeddings=prompts, prompt_mask=np.ones((3, 4), bool))
    graphs = [str(bundle.path(f"graphs/image-fp32-{head}.onnx")) for head in ("labels", "prompts")]
    subprocess.run(
        [sys.executable, "-c", OLDEST, str(tmp_path), *graphs],
        env={**os.environ, "PYTHONPATH": str(Path(FLOOR).resolve())},
        check=True,
    )
    rows = image_reference(PIXELS)
    for i, vectors in enumerate((np.broadcast_to(make_pack().vectors, (3, LABELS, DIM)), prompts)):
        want = fitted.logit_scale * np.einsum("nd,npd->np", rows, vectors) + fitted.logit_bias
        np.testing.assert_allclose(np.load(tmp_path / f"{i}.npy"), want, rtol=0, atol=TOLERANCE)


def test_the_manifest_says_what_was_baked(baked: Any, tmp_path: Path) -> None:
    bundle, _, fitted = baked
    manifest = bundle.manifest
    assert [v.id for v in manifest.variants] == [
        "image-fp32",
        "text-fp32",
        "image-fp32-labels",
        "image-fp32-prompts",
    ]
    plain, _, labels, prompts = manifest.variants
    assert labels.scores == prompts.scores == fitted
    assert (plain.axes.head, labels.axes.head, prompts.axes.head) == ("embeddings", "labels", "prompts")
    assert LabelPack.open(bundle.path(labels.labels)).labels == make_pack().labels
    assert [port.shape for port in prompts.inputs] == [("N", 3, SIDE, SIDE), ("B", "P", DIM), ("B", "P")]
    assert manifest.model_id == "1" * 64
    (step,) = manifest.provenance["history"]
    assert (step["step"], step["labels"], step["heads"]) == ("bake", LABELS, [labels.id, prompts.id])
    assert 0 < step["max_cosine_difference"] < baking.MAX_COSINE


def test_only_what_a_device_needs(tmp_path: Path) -> None:
    toy = make_bundle(tmp_path / "toy")
    made = bake(toy, tmp_path / "small", make_pack(), prompts=False, drop_text=True, only_heads=True)
    assert made.variants == ("image-fp32-labels",)
    assert [v.id for v in made.bundle.manifest.variants] == ["image-fp32-labels"]
    assert made.bundle.manifest.text is None
    assert sorted(name.partition("/")[0] for name in made.bundle.manifest.files) == ["graphs", "labels"]
    assert verify(made.bundle, threads=1).to_dict()["passed"]
    with pytest.raises(
        InputError, match=r"has no image tower or detector that gives embeddings\. Bake from the bundle that"
    ):
        bake(made.bundle, tmp_path / "again", make_pack())


def test_graphs_share_their_weights_and_old_heads_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "EMBED_BELOW", 0)
    first = bake(make_bundle(tmp_path / "toy"), tmp_path / "first", make_pack(1000)).bundle
    second = bake(first, tmp_path / "second", make_pack(), places=7).bundle
    for bundle, count in ((first, 1000), (second, LABELS)):
        weight_files = [name for name in bundle.manifest.files if name.endswith(".bin")]
        assert len(weight_files) == 1
        tower, head = 3 * SIDE * SIDE * DIM * 4, count * DIM * 4
        assert bundle.manifest.files[weight_files[0]].size <= tower + head + 4096
        assert len([name for name in bundle.manifest.files if name.startswith("labels/")]) == 1
        found = run(bundle, "image-fp32-labels", pixels=PIXELS)["logits"]
        np.testing.assert_allclose(
            found, 10 * image_reference(PIXELS) @ make_pack(count).vectors.T, rtol=0, atol=TOLERANCE
        )
        rows = run(bundle, "image-fp32", pixels=PIXELS)["embeddings"]
        np.testing.assert_allclose(rows, image_reference(PIXELS), rtol=0, atol=1e-6)
    assert [v.id for v in second.manifest.variants] == [v.id for v in first.manifest.variants]
    assert second.manifest.variants[3].inputs[1].shape == ("B", 7, DIM)
    assert len(second.manifest.provenance["history"]) == 2


def test_a_graph_with_fixed_places_pads(tmp_path: Path) -> None:
    bundle = bake(make_bundle(tmp_path / "toy"), tmp_path / "open", None, places=4).bundle
    assert not bundle.manifest.variants_of("image", "labels")
    prompts, mask = np.zeros((1, 4, DIM), np.float32), np.array([[True, True, False, False]])
    prompts[:, :2] = unit(1, 2, DIM)
    found = run(bundle, "image-fp32-prompts", pixels=PIXELS, prompt_embeddings=prompts, prompt_mask=mask)[
        "logits"
    ]
    np.testing.assert_allclose(
        found[:, :2], 10 * image_reference(PIXELS) @ prompts[0, :2].T, rtol=0, atol=TOLERANCE
    )
    assert (found[:, 2:] == -1e4).all()


def test_refusals(tmp_path: Path) -> None:
    toy = make_bundle(tmp_path / "toy")
    pack = make_pack()
    for pack_, options, message in (
        (None, {"prompts": False}, "nothing to bake: pass labels, or ask for the head that takes prompts"),
        (pack, {"variants": ["image-int8"]}, "no variant 'image-int8' to bake on; it has image-fp32."),
        (make_pack(model_id="2" * 64), {}, "this label pack was made by model 222222222222"),
    ):
        with pytest.raises(InputError, match=message):
            bake(toy, tmp_path / "out", pack_, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is the bundle itself, and a bundle never changes"):
        bake(toy, toy.root, pack)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"], "nothing is left behind"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("add_labels", "* scores.logit_scale", ""),
        ("add_labels", "vectors.astype(np.float64).T", "vectors[::-1].astype(np.float64).T"),
        ("add_labels", "if scores.logit_bias:", "if False:"),
        ("add_prompts", "np.array(scores.logit_scale, np.float32)", "np.array(1.001 * scores.logit_scale, np.float32)"),
        ("add_prompts", "if scores.logit_bias:", "if False:"),
    ],
)  # fmt: skip
def test_planted_faults_make_no_bundle(
    name: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baking, name, broken(getattr(baking, name), old, new))
    toy = make_bundle(tmp_path / "toy", activation="sigmoid", logit_bias=-3.0)
    with pytest.raises(CheckFailed, match=r"its cosines are .* from those of its embeddings"):
        bake(toy, tmp_path / "out", make_pack())
    assert not (tmp_path / "out").exists()


def _exchange(bundle: Bundle) -> None:
    """Another pack under the name of the first: two labels exchanged."""
    file = bundle.path(bundle.manifest.variants_of("image", "labels")[0].labels)
    pack = LabelPack.open(file)
    order = [1, 0, *range(2, LABELS)]
    replace(pack, vectors=pack.vectors[order]).save(file)


def _rescale(bundle: Bundle, precision: str, scale: float = 10.2) -> Bundle:
    variants = tuple(
        replace(v, scores=Scores(scale), axes=replace(v.axes, precision=precision))
        for v in bundle.manifest.variants  # type: ignore[arg-type]
    )
    return replace(bundle, manifest=replace(bundle.manifest, variants=variants))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_verify_finds_a_head_that_is_not_its_packs(tmp_path: Path, precision: str) -> None:
    made = bake(with_golden(tmp_path / "golden"), tmp_path / "baked", make_pack()).bundle
    details = {c.name: c.detail for c in verify(made, threads=1).checks if c.name.startswith("image-fp32-")}
    assert set(details) == {"image-fp32-labels", "image-fp32-prompts"}
    assert all("3 golden rows, cosines" in detail for detail in details.values())
    _exchange(made)
    spoiled = seal(made.root, _rescale(made, precision, 10.0).manifest)
    failed = {c.name: c.detail for c in verify(spoiled, threads=1).checks if not c.passed}
    assert set(failed) == {"image-fp32-labels"}
    assert "from what the golden rows give" in failed["image-fp32-labels"]
    rescaled = seal(made.root, _rescale(open_bundle(made.root), "fp32").manifest)
    failed = {c.name: c.detail for c in verify(rescaled, threads=1).checks if not c.passed}
    assert set(failed) == {"image-fp32-labels", "image-fp32-prompts"}
