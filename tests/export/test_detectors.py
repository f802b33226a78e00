"""Exported detectors against their source, head by head; what their graphs hold; faults that must be seen; labels baked in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from edgeclip.bundle import Axes, Bundle, Detection, Variant, seal
from edgeclip.errors import CheckFailed, InputError, SourceError
from edgeclip.export import detector_parity, detector_towers, heads
from edgeclip.export.bake import bake
from edgeclip.export.detector_parity import DetectorProof, open_proof, see
from edgeclip.export.golden import golden_pictures
from edgeclip.export.proofs import Material
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.export.towers import tower_of
from edgeclip.models.detector import corners, grid_bias
from edgeclip.models.resolution import at_resolution
from edgeclip.models.source import Source
from edgeclip.runtime.images import bytes_of
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.replay import read_golden
from edgeclip.runtime.verify import verify
from tests.export.detectors import DETECTOR_PREPROCESSING, DIM, detector_source, exported
from tests.mutants import broken

Array = NDArray[Any]

REGIONS, TOLERANCE = 16, 5e-6  # noise is 1e-6 here and 2e-6 at 12 blocks of 768 pixels
FLOOR = os.environ.get("EDGECLIP_FLOOR", "")  # a folder that holds onnxruntime 1.23.2
NAMES = ("boxes", "region_embeddings", "logit_scales", "logit_biases", "objectness")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def source() -> Source:
    return detector_source()


@pytest.fixture(scope="module")
def pixels() -> Array:
    spec = DETECTOR_PREPROCESSING
    made = pixels_of(made_up_pictures(3), spec)
    levels = bytes_of(made, spec)
    return (
        ((levels / 255 - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 3, 1, 2).astype(np.float32)
    )


@pytest.fixture(scope="module")
def said(source: Source, pixels: Array) -> dict[str, Array]:
    """What the source says, by output."""
    with torch.no_grad():
        found = source.model.detector(torch.from_numpy(pixels))  # type: ignore[operator]
    rows = torch.nn.functional.normalize(found.embeddings, dim=-1)
    parts = (found.boxes, rows, found.scales, found.biases, found.objectness)
    return {name: part.numpy() for name, part in zip(NAMES, parts, strict=True)}


def unit(*shape: int, seed: int = 1) -> Array:
    rows = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def logits_of(said: dict[str, Array], prompts: Array) -> Array:
    """(N, Q, P) of (B, P, D), by numpy."""
    prompts = np.broadcast_to(prompts, (len(said["boxes"]), *prompts.shape[1:])).astype(np.float64)
    cosines = np.einsum("nqd,npd->nqp", said["region_embeddings"].astype(np.float64), prompts)
    wanted: Array = said["logit_scales"][..., None] * cosines + said["logit_biases"][..., None]
    return wanted


def run(bundle: Bundle, variant: Variant, **feed: Array) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(str(bundle.path(variant.files[0])))
    assert [node.name for node in session.get_outputs()] == [port.name for port in variant.outputs]
    if variant.axes.input == "uint8":
        feed["pixels"] = bytes_of(feed["pixels"], DETECTOR_PREPROCESSING)
    return dict(zip([port.name for port in variant.outputs], session.run(None, feed), strict=True))


def test_what_is_in_the_bundle(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.detection == Detection(threshold=0.3, nms_iou=0.5, objectness=True)
    flavours = ("decomposed", "op", "decomposed-uint8", "op-uint8")
    assert [v.id for v in manifest.variants] == [
        f"detector-fp32-{name}{head}" for name in flavours for head in ("", "-prompts")
    ]
    assert {v.id: v.requires["tensorrt"] for v in manifest.variants if "op" not in v.id.split("-")} == {
        v.id: "10.3" for v in manifest.variants if v.axes.attention == "decomposed"
    }
    plain, prompted = manifest.variants[:2]
    assert {port.name: port.shape for port in plain.outputs} == {
        "boxes": ("N", REGIONS, 4), "region_embeddings": ("N", REGIONS, DIM), "logit_scales": ("N", REGIONS),
        "logit_biases": ("N", REGIONS), "objectness": ("N", REGIONS),
    }  # fmt: skip
    assert {port.name: port.shape for port in prompted.inputs[1:]} == {
        "prompt_embeddings": ("B", "P", DIM), "prompt_mask": ("B", "P"),
    }  # fmt: skip
    assert {port.name: port.shape for port in prompted.outputs} == {
        "boxes": ("N", REGIONS, 4), "logits": ("N", REGIONS, "P"), "objectness": ("N", REGIONS),
    }  # fmt: skip
    for variant in manifest.variants:
        assert variant.fidelity is not None
        assert variant.fidelity.detection is not None
        assert variant.fidelity.detection.score_max < 1e-5
        assert variant.fidelity.detection.agreement == 1.0, "nothing was found, so nothing was compared"


def test_every_head_agrees_with_the_source_at_every_batch(
    bundle: Bundle,
    pixels: Array,
    said: dict[str, Array],
) -> None:
    assert np.ptp(said["boxes"], axis=(0, 1)).min() > 0.3
    assert np.ptp(said["logit_scales"]) > 3
    assert said["logit_scales"].min() < 0.5, "elu is never bent"
    for variant in bundle.manifest.variants:
        for n in (1, 3):
            few = {name: array[:n] for name, array in said.items()}
            if variant.axes.head == "embeddings":
                found = run(bundle, variant, pixels=pixels[:n])
                for name in NAMES:
                    np.testing.assert_allclose(
                        found[name], few[name], rtol=1e-5, atol=TOLERANCE, err_msg=f"{variant.id} {name}"
                    )
                continue
            for sets, places in ((1, 1), (n, 5)):
                prompts, mask = unit(sets, places, DIM), np.ones((sets, places), bool)
                mask[:, 1:3] = False
                found = run(bundle, variant, pixels=pixels[:n], prompt_embeddings=prompts, prompt_mask=mask)
                wanted = np.where(np.broadcast_to(mask, (n, places))[:, None], logits_of(few, prompts), -1e4)
                np.testing.assert_allclose(
                    found["logits"], wanted, rtol=1e-5, atol=TOLERANCE, err_msg=variant.id
                )
                np.testing.assert_allclose(found["boxes"], few["boxes"], rtol=0, atol=TOLERANCE)


def test_padding_with_masked_prompts_changes_no_other_logit(bundle: Bundle, pixels: Array) -> None:
    (variant,) = bundle.manifest.variants_of("detector", "prompts")[:1]
    prompts = unit(1, 3, DIM)
    alone = run(bundle, variant, pixels=pixels, prompt_embeddings=prompts, prompt_mask=np.ones((1, 3), bool))
    wide = np.concatenate([prompts, np.full((1, 7, DIM), 1e3, np.float32)], axis=1)
    mask = np.arange(10)[None] < 3
    padded = run(bundle, variant, pixels=pixels, prompt_embeddings=wide, prompt_mask=mask)
    np.testing.assert_allclose(padded["logits"][..., :3], alone["logits"], rtol=0, atol=TOLERANCE)
    assert (padded["logits"][..., 3:] == -1e4).all()


def test_what_the_graphs_hold(bundle: Bundle) -> None:
    for variant in bundle.manifest.variants:
        model = onnx.load(bundle.path(variant.files[0]))
        onnx.checker.check_model(model, full_check=True)
        kinds = [node.op_type for node in model.graph.node]
        assert not {"Loop", "If", "Scan", "NonMaxSuppression", "Elu", "Expand", "ConstantOfShape"} & set(
            kinds
        )
        assert (
            kinds.count("LayerNormalization") == 5
        )  # before and after the block, two in it, one of the regions
        assert all(not node.domain for node in model.graph.node)
        (bias,) = (onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "box_bias")
        np.testing.assert_array_equal(bias, grid_bias((4, 4)).numpy())
        assert bias.dtype == np.float32
        for value in (*model.graph.input[:1], *model.graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == "N"


@pytest.mark.skipif(
    not Path(FLOOR or "-").is_dir(), reason="EDGECLIP_FLOOR names no folder; `make test` makes one"
)
def test_portable_graphs_open_and_agree_in_the_oldest_onnxruntime(
    bundle: Bundle,
    pixels: Array,
    said: dict[str, Array],
    tmp_path: Path,
) -> None:
    program = """
import sys
import numpy, onnxruntime
assert onnxruntime.__version__ == "1.23.2", onnxruntime.__version__
given = numpy.load(sys.argv[1] + "/in.npz")
for i, graph in enumerate(sys.argv[2:]):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feed = {node.name: given[node.name] for node in session.get_inputs()}
    names = [node.name for node in session.get_outputs()]
    numpy.savez(f"{sys.argv[1]}/{i}.npz", **dict(zip(names, session.run(names, feed))))
"""
    prompts = unit(3, 4, DIM)
    np.savez(tmp_path / "in.npz", pixels=pixels, prompt_embeddings=prompts, prompt_mask=np.ones((3, 4), bool))
    graphs = [str(bundle.path(v.files[0])) for v in bundle.manifest.variants[:2]]
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), *graphs],
        env={**os.environ, "PYTHONPATH": str(Path(FLOOR).resolve())}, check=True,
    )  # fmt: skip
    plain, prompted = np.load(tmp_path / "0.npz"), np.load(tmp_path / "1.npz")
    for name in NAMES:
        np.testing.assert_allclose(plain[name], said[name], rtol=1e-5, atol=TOLERANCE)
    np.testing.assert_allclose(prompted["logits"], logits_of(said, prompts), rtol=1e-5, atol=TOLERANCE)


# (of the traceable form, what is there, what a fault would have in its place) -> the figure that must tell
FAULTS = [
    ("forward", "self.box_head(x).float() + self.box_bias", "self.box_head(x).float()", "box_max"),
    ("forward", "torch.exp(-F.relu(-scale)) + F.relu(scale)", "F.elu(scale)", "score_max"),
    ("forward", "(scales * shift)", "shift", "score_max"),
    ("forward", "x[:, 1:] * x[:, :1]", "x[:, 1:]", "max_abs"),
    ("forward", "x = self.norm(x[:, 1:] * x[:, :1])", "x = self.norm(x[:, 1:]) * x[:, :1]", "max_abs"),
    ("forward", "x = self.trunk.norm_post(x)", "pass", "max_abs"),
    ("forward", "self.objectness_head(x).float()", "self.box_head(x).float()", "score_max"),
    ("head", "F.gelu(self.fc1(x))", "F.gelu(self.fc1(x), approximate='tanh')", "box_max"),
    ("head", "F.gelu(self.fc1(x))", "torch.sigmoid(1.702 * self.fc1(x)) * self.fc1(x)", "box_max"),
]  # fmt: skip


@pytest.fixture(scope="module")
def proof(source: Source) -> DetectorProof:
    return open_proof(source, "detector", Material(made_up_pictures(4), golden_pictures(), None, None, 1))


def traced_says(source: Source, proof: DetectorProof) -> dict[str, Array]:
    with torch.no_grad():
        found = tower_of(source, "detector").module(torch.from_numpy(proof.pixels))
    return {name: part.numpy() for name, part in zip(NAMES, found, strict=True)}


@pytest.mark.parametrize(("part", "old", "new", "figure"), FAULTS)
def test_faults_of_the_traceable_form_fall_out_of_the_tolerance(
    source: Source,
    proof: DetectorProof,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    old: str,
    new: str,
    figure: str,
) -> None:
    variant = Variant("v", "detector", Axes(), (), (), ())
    assert proof._gate(variant, proof._measure(traced_says(source, proof))) == []
    owner = detector_towers._Head if part == "head" else detector_towers._Owl
    monkeypatch.setattr(owner, "forward", broken(owner.forward, old, new))
    failures = proof._gate(variant, proof._measure(traced_says(source, proof)))
    assert any(line.startswith(f"{figure} to the source") for line in failures), failures


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ("_rated", '("Mul", "logit_scales"), ("Add", "logit_biases")', '("Add", "logit_biases"), ("Mul", "logit_scales")'),
        ("_rated", "[shown.outputs[0], nodes[-1].outputs[0], masked]", "[shown.outputs[0], nodes[-1].outputs[0], nodes[-1].outputs[0]]"),
        ("detect_labels", "vectors.T", "vectors[::-1].T"),
    ],
)  # fmt: skip
def test_faults_of_a_head_are_seen_when_it_is_baked(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    old: str,
    new: str,
) -> None:
    monkeypatch.setattr(heads, function, broken(getattr(heads, function), old, new))
    monkeypatch.setattr("edgeclip.export.bake.detect_labels", heads.detect_labels)
    with pytest.raises(CheckFailed, match=r"cosines are|another logit than -10000"):
        bake(bundle, tmp_path / "baked", pack_of(bundle), threads=1)


def pack_of(bundle: Bundle, count: int = 5) -> LabelPack:
    names = tuple(f"label {i}" for i in range(count))
    return LabelPack(names, ("{}",), unit(count, DIM, seed=3), bundle.manifest.model_id)


def test_labels_and_a_fixed_number_of_prompts_are_baked_in(
    bundle: Bundle,
    pixels: Array,
    said: dict[str, Array],
    tmp_path: Path,
) -> None:
    pack = pack_of(bundle)
    made = bake(bundle, tmp_path / "baked", pack, places=4, only_heads=True, threads=1)
    assert made.variants == ("detector-fp32-decomposed-labels", "detector-fp32-decomposed-prompts")
    assert [v.id for v in made.bundle.manifest.variants] == list(made.variants)
    assert made.worst < 2e-6
    labelled, prompted = made.bundle.manifest.variants
    assert [(p.name, p.shape) for p in labelled.outputs] == [
        ("boxes", ("N", REGIONS, 4)), ("logits", ("N", REGIONS, 5)), ("objectness", ("N", REGIONS)),
    ]  # fmt: skip
    for n in (1, 3):
        few = {name: array[:n] for name, array in said.items()}
        found = run(made.bundle, labelled, pixels=pixels[:n])
        np.testing.assert_allclose(
            found["logits"], logits_of(few, pack.vectors[None]), rtol=1e-5, atol=TOLERANCE
        )
        np.testing.assert_allclose(found["objectness"], few["objectness"], rtol=0, atol=TOLERANCE)
    prompts, mask = unit(1, 4, DIM), np.array([[True, True, False, True]])
    found = run(made.bundle, prompted, pixels=pixels, prompt_embeddings=prompts, prompt_mask=mask)
    wanted = np.where(mask[:, None], logits_of(said, prompts), -1e4)
    np.testing.assert_allclose(found["logits"], wanted, rtol=1e-5, atol=TOLERANCE)


def test_what_cannot_be_baked_is_said(bundle: Bundle, tmp_path: Path) -> None:
    made = bake(bundle, tmp_path / "a", None, only_heads=True, threads=1)
    assert made.variants == ("detector-fp32-decomposed-prompts",)
    with pytest.raises(InputError, match=r"has no image tower or detector that gives embeddings\. Bake from"):
        bake(made.bundle, tmp_path / "b", None)
    with pytest.raises(
        InputError, match=r"no variant 'detector-int8' to bake on; it has detector-fp32-decomposed, detector"
    ):
        bake(bundle, tmp_path / "b", None, variants=["detector-int8"])
    alien = replace(pack_of(bundle), model_id="2" * 64)
    with pytest.raises(InputError, match="this label pack was made by model 222222222222"):
        bake(bundle, tmp_path / "b", alien)


def golden_changed(bundle: Bundle, folder: Path, name: str, change: Any) -> Bundle:
    """The same bundle with another golden array."""
    shutil.copytree(bundle.root, folder)
    golden = read_golden(bundle)
    texts = golden.pop("texts")
    assert texts == []
    golden[name] = np.ascontiguousarray(change(golden[name]))
    (folder / bundle.manifest.golden).write_bytes(save(golden, metadata={"texts": "[]"}))
    return seal(folder, replace(bundle.manifest, variants=bundle.manifest.variants[:2]))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("boxes", lambda x: x + 1e-4, "boxes are 1.0e-04 from the golden ones, 2e-05 is allowed"),
        ("objectness", lambda x: x + 1e-4, "objectness are 1.0e-04 from the golden ones"),
        ("region_embeddings", lambda x: x[:, ::-1], "from the golden rows"),
        ("logit_scales", lambda x: x * 1.001, "of their scale from what the golden rows give"),
        ("logit_biases", lambda x: x + 1e-3, "of their scale from what the golden rows give"),
        ("pixels", lambda x: x[:, ::-1], "levels of 255 from the golden ones, 1.51 is allowed"),
    ],
)  # fmt: skip
def test_verify_sees_what_is_not_as_it_was(
    bundle: Bundle,
    tmp_path: Path,
    name: str,
    change: Any,
    words: str,
) -> None:
    """The same fault in the golden rows as in a graph: one is as far from the other."""
    damaged = golden_changed(bundle, tmp_path / "b", f"detector/{name}", change)
    failed = [check for check in verify(damaged, threads=1).checks if not check.passed]
    assert failed
    assert words in failed[0].detail
    if name in ("boxes", "objectness", "logit_scales", "logit_biases"):
        assert [check.name for check in failed] == [v.id for v in damaged.manifest.variants], (
            "the head was not held to it"
        )


def test_without_golden_rows_a_detector_must_still_be_sane(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.root, tmp_path / "b")
    (tmp_path / "b" / bundle.manifest.golden).unlink()
    bare = seal(
        tmp_path / "b",
        replace(bundle.manifest, golden="", variants=bundle.manifest.variants[:2]),
    )
    checks = {check.name: check for check in verify(bare, threads=1).checks}
    for variant in bare.manifest.variants:
        assert checks[variant.id].passed, checks[variant.id].detail
        assert checks[variant.id].detail == "2 made-up inputs, finite and different"


def test_golden_rows_are_few_and_from_everywhere(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, proof: DetectorProof
) -> None:
    golden = read_golden(bundle)
    assert golden["detector/pixels"].dtype == np.uint8
    assert golden["detector/regions"].tolist() == list(range(REGIONS))
    monkeypatch.setattr(detector_parity, "KEPT", 5)
    few = proof.golden()
    assert few["detector/regions"].tolist() == [0, 4, 8, 11, 15], "of one column alone"
    np.testing.assert_array_equal(few["detector/boxes"], golden["detector/boxes"][:, [0, 4, 8, 11, 15]])


def test_at_another_size_positions_are_resampled_and_boxes_start_on_the_new_grid(source: Source) -> None:
    small = at_resolution(source, (32, 96))
    assert small.preprocessing is not None
    assert small.preprocessing.size == (32, 96)
    detector: Any = small.model.detector
    assert detector.config.image.grid == (2, 6)
    np.testing.assert_array_equal(detector.box_bias, grid_bias((2, 6)))
    seen = see(small, np.zeros((1, 3, 32, 96), np.float32))
    assert seen.boxes.shape == (1, 12, 4)
    old: Any = source.model.detector
    assert torch.equal(detector.trunk.position[0], old.trunk.position[0])
    assert detector.box_head.fc1.weight.data_ptr() == old.box_head.fc1.weight.data_ptr()
    assert old.config.image.grid == (4, 4), "the source was changed"
    # a head that adds nothing leaves each box on its patch: far corner and size
    with torch.no_grad():
        starts = corners(torch.sigmoid(detector.box_bias))
    np.testing.assert_allclose(
        starts[0], [1 / 6 - 1 / 12, 1 / 2 - 1 / 4, 1 / 6 + 1 / 12, 1 / 2 + 1 / 4], atol=3e-4
    )
    with pytest.raises(InputError, match="expected multiples of 16 pixels"):
        at_resolution(source, (40, 40))


def test_a_source_that_gives_nonsense_is_refused_before_it_is_traced(source: Source) -> None:
    material = Material(made_up_pictures(3), golden_pictures(), None, None, 1)
    flat = detector_source()
    with torch.no_grad():
        flat.model.detector.embedding.weight.zero_()  # type: ignore[union-attr]
    with pytest.raises(
        CheckFailed, match="made-up: detector of the source: gives the same region_embeddings"
    ):
        open_proof(flat, "detector", material)
    with pytest.raises(SourceError, match="does not say how pictures become detections"):
        open_proof(replace(source, detection=None), "detector", material)


def test_an_engine_is_built_of_a_detector_with_prompts(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds without a GPU; not installed")
    from edgeclip.runtime.tensorrt.builder import build
    from edgeclip.runtime.tensorrt.library import load_library
    from edgeclip.runtime.tensorrt.profiles import profiles_for
    from edgeclip.runtime.tensorrt.record import BuildOptions

    rtx, variant = load_library("tensorrt-rtx"), bundle.manifest.variants[1]
    options = BuildOptions(profiles_for(variant, bundle.manifest, [(1, 1, 2)]), ("sm86",))
    built = build(rtx, bundle.path(variant.files[0]), variant, options)
    assert built.network.products == {
        "fp32": 16
    }  # 12 linear layers, the patches, attention's two, the prompts
