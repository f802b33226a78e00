"""Detectors through the budgeted compressor: heads stay float, boxes and scores are in the gate, and every head is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Detection, Fidelity, Port, open_bundle
from edgeclip.cli import run
from edgeclip.errors import CheckFailed, InputError
from edgeclip.export.compress.api import CompressSettings, NothingFits, compress_bundle
from edgeclip.export.compress.budget import of_tower, parse_budgets
from edgeclip.export.compress.data import read_data
from edgeclip.export.compress.regions import RegionJudge, seen, side_by_side
from edgeclip.export.derive import read_graph
from edgeclip.export.linears import in_heads, linears
from edgeclip.export.observe import outputs_of
from edgeclip.export.precision import METHODS, Request, convert
from edgeclip.export.precision.islands import far
from edgeclip.export.precision.typed import rounded
from edgeclip.export.prepare import Converter
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.runtime import replay
from edgeclip.runtime.engines import EngineOptions, open_variant
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.verify import verify
from tests.export.compress.scenes import OUTPUTS, REGIONS, make_scenes
from tests.export.compress.small import DIM
from tests.export.detectors import detector_source, liven
from tests.export.traced import graphs
from tests.stress import plant_trunk_outliers

Speed = Callable[[float], None]
Array = NDArray[Any]
HEADS = {"box_head.fc1.weight", "box_head.fc2.weight", "embedding.weight", *(f"{name}.weight" for name in OUTPUTS if name[:2] in ("lo", "ob"))}  # fmt: skip
TRUNK = {f"blocks.{i}.mlp.fc{k}.weight" for i in (0, 1) for k in (1, 2)}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_scenes(tmp_path_factory.mktemp("scenes"))


def settings(classes: Path, *budgets: str, **changes: Any) -> CompressSettings:
    wanted = CompressSettings(parse_budgets(budgets), ("int8",), ("detector",), images=classes, threads=1)
    return replace(wanted, **changes)


def outputs(bundle: Bundle, name: str, pixels: Array) -> list[Array]:
    """Of a graph by its id, through plain onnxruntime."""
    (variant,) = (v for v in bundle.manifest.variants if v.id == name)
    session = onnxruntime.InferenceSession(str(bundle.path(variant.files[0])))
    feed = {"pixels": pixels}
    if variant.axes.head == "prompts":
        prompts = np.eye(DIM, dtype=np.float32)[None, :3]
        feed |= {"prompt_embeddings": prompts, "prompt_mask": np.ones((1, 3), bool)}
    found: list[Array] = session.run(None, feed)
    return found


@pytest.mark.parametrize("method", ["int8", "int8-dynamic", "int4", "fp8"])
def test_only_the_trunk_becomes_bytes(method: str, scenes: Bundle) -> None:
    model = read_graph(scenes, scenes.manifest.variants[0])
    pixels = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    made = convert(model, method, Request(inputs=pixels, threads=1)).model
    assert {layer.name for layer in linears(model) if layer.node in in_heads(model)} == HEADS
    assert {layer.name for layer in linears(made)} == HEADS
    before = {layer.name for layer in linears(model)}
    assert before - HEADS == TRUNK


def test_every_head_is_written_and_states_what_its_regions_lose(
    scenes: Bundle, classes: Path, tmp_path: Path, speed: Speed
) -> None:
    """The manifest's figures against ours, from plain onnxruntime's outputs on the pictures that nothing was fitted on."""
    report = compress_bundle(scenes, tmp_path / "out", settings=settings(classes))
    made = [v for v in report.bundle.manifest.variants if v.axes.precision == "int8"]
    assert [v.id for v in made] == ["detector-int8", "detector-int8-labels", "detector-int8-prompts"]
    assert report.evidence()["budgets"] == ["distance=0.1", "box=0.01", "score=0.02"]
    assert verify(report.bundle, threads=1).to_dict()["passed"]
    data = read_data(scenes, images=classes, texts=None, labels=(), labels_from=None)
    assert data.pixels == {}, "no tower reads them: 1.8 GB at 768 pixels"
    pixels = data.detector["float32"][1::2]
    plain, small = (outputs(report.bundle, name, pixels) for name in ("detector-fp32", "detector-int8"))
    figures = made[0].fidelity
    assert figures is not None
    assert figures.detection is not None
    assert figures.against == "detector-fp32"
    box = np.abs(plain[0].astype(np.float64) - small[0])
    assert figures.detection.box_max == pytest.approx(box.max(), abs=1e-6)
    assert figures.detection.box_mean == pytest.approx(box.mean(), abs=1e-7)
    assert figures.samples == figures.detection.regions == len(pixels) * REGIONS
    held_out = report.chosen["detector"].held_out
    assert held_out is not None
    # 16 regions a picture are fewer than the best 100: all of them
    assert held_out.box == pytest.approx(box.mean(), abs=1e-7)
    assert held_out.agreement == figures.detection.agreement
    assert held_out.agreement is not None
    assert held_out.agreement > 0.5
    for head in ("labels", "prompts"):
        alike = outputs(report.bundle, f"detector-int8-{head}", pixels)
        np.testing.assert_allclose(alike[0], small[0], rtol=0, atol=1e-6)
        vectors = np.eye(DIM)[:3] if head == "prompts" else None
        if vectors is not None:
            logits = small[2][..., None] * (small[1] @ vectors.T) + small[3][..., None]
            np.testing.assert_allclose(alike[1], logits, rtol=0, atol=1e-4)
    assert all(v.fidelity == figures for v in made)
    _check_what_verify_allows(report.bundle, figures)


def _check_what_verify_allows(bundle: Bundle, figures: Fidelity) -> None:
    """Boxes twice as far as a hundredth of the side, or as what the variant states."""
    golden = replay.read_golden(bundle)
    moved = {k: v + 0.03 if k == "detector/boxes" else v for k, v in golden.items()}
    assert figures.detection is not None
    honest = replace(figures, detection=replace(figures.detection, box_mean=0.02))
    for one in bundle.manifest.variants[:3]:
        engine = open_variant("onnxruntime-cpu", bundle, one, EngineOptions(threads=1))
        try:
            with pytest.raises(
                CheckFailed, match=r"boxes are 3\.0e-02 from the golden ones on average, 2e-02 is allowed"
            ):
                replay.replay_tower(bundle, engine, moved)
            engine.variant = replace(one, fidelity=honest)
            replay.replay_tower(bundle, engine, moved)
        finally:
            engine.close()


def test_the_labels_travel_where_the_float_graphs_do_not(
    scenes: Bundle, classes: Path, tmp_path: Path, speed: Speed
) -> None:
    done = compress_bundle(scenes, tmp_path / "out", settings=settings(classes, drop_float=True)).bundle
    assert {v.axes.precision for v in done.manifest.variants if v.tower == "detector"} == {"int8"}
    (labels,) = {v.labels for v in done.manifest.variants if v.labels}
    assert done.path(labels).is_file()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("box=1e-7", "box 0.00[0-9]+, at most 1e-07 allowed"),
        ("score=1e-7", "score 0.00[0-9]+, at most 1e-07 allowed"),
        ("agreement=1", "agreement 0.[0-9]+, at least 1 allowed"),
    ],
)
def test_boxes_and_scores_are_in_the_gate(
    budget: str, message: str, scenes: Bundle, classes: Path, tmp_path: Path, speed: Speed
) -> None:
    with pytest.raises(NothingFits, match=f"int8: out of budget on the .* half: .*{message}"):
        compress_bundle(scenes, tmp_path / "out", settings=settings(classes, "distance=0.5", budget))
    assert list(tmp_path.iterdir()) == []


def test_the_default_bounds_boxes_whatever_else_is_asked() -> None:
    def asked(*texts: str, tower: str = "detector") -> list[str]:
        return [str(budget) for budget in of_tower(parse_budgets(texts), tower)]

    assert asked() == asked("distance=0.1") == ["distance=0.1", "box=0.01", "score=0.02"]
    assert asked("cosine=0.9", "box=0.1") == ["cosine=0.9", "box=0.1"]
    assert asked("box=0.1") == ["distance=0.1", "box=0.1"]
    assert asked("box=0.1", tower="image") == ["distance=0.1"]


@pytest.mark.parametrize("method", ["fp16", "bf16"])
def test_what_stands_behind_the_heads_is_fp32(method: str, scenes: Bundle) -> None:
    model = read_graph(scenes, scenes.manifest.variants[0])
    pixels = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    made = convert(model, method, Request(inputs=pixels, threads=1)).model
    types = {node.op_type: {value.dtype.name for value in node.outputs if value.dtype} for node in made.graph}
    assert types["Sigmoid"] == types["LpNormalization"] == types["Sub"] == {"FLOAT"}
    assert "box_bias" in made.graph.initializers, "the grid's logits are not rounded"
    assert made.graph.initializers["box_bias"].dtype is not None
    assert made.graph.initializers["box_bias"].dtype.name == "FLOAT"
    assert METHODS[method].precision.upper().replace("FP", "FLOAT").replace("BF", "BFLOAT") in {
        value.dtype.name for value in made.graph.initializers.values() if value.dtype
    }


def test_figures_by_hand() -> None:
    """Two regions, of which one is found: its box moves by 0.02, its score by what the logit's change makes of it."""
    ports = tuple(Port(n, "float32", ("N", 2, *s)) for n, s in {**OUTPUTS, "region_embeddings": (2,)}.items())
    boxes = np.array([[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]] * 4, np.float32)
    rows = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]] * 2, np.float32)
    ones = np.ones((4, 2), np.float32)
    plain = side_by_side([boxes, rows, 4 * ones, -1 * ones, 0.5 * ones])
    moved = side_by_side([boxes + np.float32(0.02), rows, 4 * ones, -2 * ones, 0.5 * ones])
    np.testing.assert_array_equal(seen(moved, ports).biases, -2 * ones)
    np.testing.assert_array_equal(seen(moved, ports).embeddings, rows)
    judge = RegionJudge(
        plain, {"held_out": np.arange(4)}, ports, np.array([[1.0, 0]]), Detection(0.3, objectness=True)
    )
    found = judge.figures(moved, "held_out")
    half = [0.5 / (1 + np.exp(-x)) for x in (4 - 1, 4 - 2, -1, -2)]
    assert found.box == pytest.approx(0.02, abs=1e-6)
    assert found.score == pytest.approx((half[0] - half[1] + half[2] - half[3]) / 2, abs=1e-7)
    assert (found.distance, found.top1, found.samples) == (0, 0, 8)
    assert found.agreement == 0, "an IoU of 0.85 is another box"


def test_what_cannot_be_asked_is_refused(
    scenes: Bundle, tiny: Bundle, classes: Path, tmp_path: Path, speed: Speed
) -> None:
    blind = replace(scenes, manifest=replace(scenes.manifest, detection=Detection(threshold=1.0)))
    for bundle, budgets, changes, message in (
        (tiny, ("box=0.1",), {"towers": ()}, "--budget box: .* has no detector, so that nothing has boxes"),
        (scenes, ("top1=-1",), {}, "--budget top1: .* has no image tower beside a text tower"),
        (scenes, (), {"towers": ("tokens",)}, "--tower tokens: only image, text, detector are compressed"),
        (blind, ("agreement=0.9",), {}, "--budget agreement: detector-fp32 finds nothing in the calibration pictures"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            compress_bundle(bundle, tmp_path / "out", settings=settings(classes, *budgets, **changes))


def test_the_report_and_inspect_say_it(
    scenes: Bundle, classes: Path, tmp_path: Path, speed: Speed, capsys: pytest.CaptureFixture[str]
) -> None:
    out, curve = tmp_path / "out", tmp_path / "curve.svg"
    asked = ["compress", str(scenes.root), "-o", str(out), "--images", str(classes), "--tower", "detector", "--threads", "1"]  # fmt: skip
    assert run([*asked, "--precision", "int8", "--picture", str(curve)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "detector: int8, 1.90x (1.85-1.95); corners move by 0.00" in said
    assert "of the detections are fp32's" in said
    assert all(f"budget {text}" in curve.read_text() for text in ("distance=0.1", "box=0.01", "score=0.02"))
    point = open_bundle(out).manifest.provenance["history"][-1]["compress"]["curve"][-1]
    assert point["tower"] == "detector"
    assert 0 < point["held_out"]["box"] < 0.01
    assert run(["inspect", str(out), "--json"]) == 0
    variants = json.loads(capsys.readouterr().out)["variants"]
    assert 0 < variants[0]["fidelity"]["detection"]["score_max"] < 0.2
    assert run(["compress", str(out), "--measure-only", "--json", "--threads", "1"]) == 0
    assert "detector-int8" in json.loads(capsys.readouterr().out)["variants"]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_detector_is_converted_beside_its_engine(
    precision: str, scenes: Bundle, classes: Path, tmp_path: Path
) -> None:
    """With boxes and scores in the manifest; TensorRT-RTX reads it, where it is installed."""
    rtx, base = Library("tensorrt-rtx", None, "1.7.1.116"), scenes.manifest.variants[0]
    asked = {"library": rtx, "archs": ("sm89",), "folder": tmp_path, "tell": lambda step: None}
    made = Converter(images=classes, threads=1).convert(scenes, base, precision, **asked).variant
    assert made.fidelity is not None
    assert made.fidelity.detection is not None
    assert 0 < made.fidelity.detection.box_mean < 0.01
    if precision == "fp16":
        strict = Converter(images=classes, budgets=parse_budgets(["box=1e-7"]), threads=1)
        with pytest.raises(CheckFailed, match=r"no engine is built\..*box .*, at most 1e-07 allowed"):
            strict.convert(scenes, base, precision, **asked)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds without a GPU; not installed")
    from edgeclip.runtime.tensorrt.builder import build
    from edgeclip.runtime.tensorrt.library import load_library
    from edgeclip.runtime.tensorrt.profiles import profiles_for
    from edgeclip.runtime.tensorrt.record import BuildOptions

    options = BuildOptions(profiles_for(made, scenes.manifest, [(1, 1, 2)]), ("sm86",))
    built = build(load_library("tensorrt-rtx"), tmp_path / made.files[0], made, options)
    assert precision in built.network.products


def test_a_graph_far_from_the_golden_regions_builds_no_engine(
    scenes: Bundle, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx, base = Library("tensorrt-rtx", None, "1.7.1.116"), scenes.manifest.variants[0]
    plain = replay.read_golden

    def moved(bundle: Bundle) -> dict[str, Any]:
        return {k: v + 0.1 if k == "detector/boxes" else v for k, v in plain(bundle).items()}

    monkeypatch.setattr(replay, "read_golden", moved)
    with pytest.raises(
        CheckFailed, match=r"detector-fp16: boxes are 1\.0e-01 from the golden ones on average.*No engine"
    ):
        Converter(images=classes, threads=1).convert(
            scenes, base, "fp16", rtx, ("sm89",), tmp_path, lambda step: None
        )


@pytest.mark.parity
@pytest.mark.parametrize(("method", "most"), [("fp16", 0.003), ("int8", 0.03), ("int8-dynamic", 0.03)])
def test_outliers_as_trained_trunks_have_them(method: str, most: float) -> None:
    """Embeddings relative to what separates regions, boxes as shares of the side. Found: 0.0008, 0.008, 0.006; int8 without smoothing 0.4."""
    source = detector_source(objectness=False, layers=2)
    plant_trunk_outliers(source.model.detector.trunk)
    assert source.preprocessing is not None
    pixels = pixels_of(made_up_pictures(16), source.preprocessing)
    liven(source.model.detector, torch.from_numpy(pixels[:4]))
    model = ir.from_proto(graphs(source, "detector")["decomposed"])
    want = outputs_of(model, pixels, threads=1)
    made = convert(model, method, Request(inputs=pixels[::2], threads=1)).model
    got = outputs_of(rounded(made) if method == "fp16" else made, pixels, threads=1)
    assert far(want, got) < most
    if method == "int8":
        plain = convert(model, method, Request(inputs=pixels[::2], smoothing=0.0, threads=1)).model
        assert far(want, outputs_of(plain, pixels, threads=1)) > 0.2
