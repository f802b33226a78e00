"""Finishing in int8: what PyTorch computes is what onnxruntime's byte kernels compute, before the training and after it."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn import functional as F

from edgeclip.bundle import open_bundle
from edgeclip.cli import run
from edgeclip.errors import InputError, SourceError, TrainingError
from edgeclip.export.api import export_bundle
from edgeclip.export.distill import qat
from edgeclip.export.distill.calibrated import calibrated, finished
from edgeclip.export.distill.qat import Finishing, QatSettings, finish
from edgeclip.export.linears import array_of, linears
from edgeclip.export.observe import observe, rows
from edgeclip.export.onnx_graph import trace
from edgeclip.export.precision import Request, convert
from edgeclip.export.precision.finished import Finished, load_ranges, save_ranges
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.export.towers import tower_of
from edgeclip.models.clip import Clip
from edgeclip.models.quantised import QuantisedClip
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.training.checkpoint import write_source
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.starts import from_scratch
from edgeclip.runtime.fidelity import relative_distance
from tests.export.sources import PREPROCESSING, clip_source, nano_source, one_tower
from tests.export.traced import make_ids
from tests.mixtures import moe_source
from tests.stress import plant_outliers
from tests.training.tiny import tiny

PIXELS, IDS = pixels_of(made_up_pictures(24), PREPROCESSING), make_ids(12)
INPUTS: dict[str, NDArray[Any]] = {"image": PIXELS, "text": IDS}
# Embeddings differ by 1.5e-7; one byte that goes the other way moves a row by 1e-3.
TOLERANCE = 2e-6


def graph(source: Source, kind: Any) -> ir.Model:
    tower = tower_of(source, kind, ("decomposed",))
    return trace(tower, tower.flavours[0])[0]


def embedded(source: Source, kind: str) -> NDArray[Any]:
    with torch.no_grad():
        found = F.normalize(getattr(source.model, kind)(torch.from_numpy(INPUTS[kind])), dim=-1)
    return found.numpy()  # type: ignore[no-any-return]


def begun(
    kind: str = "image", shape: str = "openai", hard: bool = True, layers: int = 1
) -> tuple[ir.Model, Source, ir.Model]:
    """A float graph, its source as calibrated, and what the compressor makes of the graph."""
    return _begun(kind, shape, hard, layers)


@cache
def _begun(kind: str, shape: str, hard: bool, layers: int) -> tuple[ir.Model, Source, ir.Model]:
    source = clip_source(shape, layers=layers)
    if hard:
        plant_outliers(source.model)
    source = one_tower(source, kind)
    plain, inputs = graph(source, kind), INPUTS[kind]
    start = calibrated(source, {kind: inputs}, threads=1)
    return plain, start, convert(plain, "int8", Request(inputs=inputs, threads=1)).model


@pytest.mark.parametrize(
    ("kind", "shape", "hard", "layers"),
    [
        ("image", "openai", True, 1),
        pytest.param("image", "openai", True, 3, marks=pytest.mark.parity),
        pytest.param("text", "openai", True, 2, marks=pytest.mark.parity),
        pytest.param("image", "siglip", False, 2, marks=pytest.mark.parity),
        pytest.param("text", "siglip", False, 2, marks=pytest.mark.parity),
        pytest.param("image", "openclip-avg", False, 2, marks=pytest.mark.parity),
    ],
)
def test_without_training_it_is_the_compressors_graph(kind: str, shape: str, hard: bool, layers: int) -> None:
    plain, start, int8 = begun(kind, shape, hard, layers)
    want = rows(int8, INPUTS[kind])
    assert relative_distance(rows(plain, INPUTS[kind]), want) > 0.004  # what the bytes cost
    np.testing.assert_allclose(embedded(start, kind), want, rtol=0, atol=TOLERANCE)


def test_it_is_layer_by_layer() -> None:
    _, start, int8 = begun()
    model = start.model
    assert isinstance(model, QuantisedClip)
    ours: dict[str, NDArray[Any]] = {}
    for name, layer in model.quantised().items():
        name = name.removeprefix("image.").replace("attention.", "")
        layer.register_forward_hook(lambda m, x, y, name=name: ours.update({name: y.detach().numpy()}))
    embedded(start, "image")
    for layer in model.quantised().values():
        layer._forward_hooks.clear()
    theirs: dict[str, str] = {}
    for node in int8.graph:
        weight = (
            node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        )
        if weight is not None and weight.op_type == "DequantizeLinear":
            name = str(weight.inputs[0].name).removesuffix(".weight.int8")  # type: ignore[union-attr]
            theirs[name] = str(node.outputs[0].consumers()[0].outputs[0].name)  # behind its bias
    assert ours.keys() == theirs.keys()
    assert len(ours) == 4
    found = next(iter(observe(int8, list(theirs.values()), PIXELS[:1], threads=1)))
    for name, value in theirs.items():
        want, mine = found[value], ours[name][:1]
        if name.endswith("qkv"):  # the graph has attention's scale in the queries: a head is 16 wide
            mine = mine.copy()
            mine[..., :48] /= 4
        mine = mine[:, : want.shape[1]]  # the last block knows only the token that is pooled
        np.testing.assert_allclose(mine, want, rtol=0, atol=2e-6 * np.abs(want).max(), err_msg=name)


@cache
def _trained(bytes_: Any) -> tuple[Source, Source, dict[str, Finished]]:
    """What a training might leave: every weight, bias and range has moved. -> (it, the finished source, its ranges)"""
    start = begun()[1] if bytes_ == "uint8" else calibrated(one_tower(clip_source(layers=1), "image"), {"image": PIXELS}, bytes_=bytes_, threads=1)  # fmt: skip
    model = copy.deepcopy(start.model)
    assert isinstance(model, QuantisedClip)
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in model.quantised().values():
            layer.weight.mul_(1 + 0.05 * torch.randn(layer.weight.shape))
            layer.bias.add_(0.01 * torch.randn(layer.bias.shape))
            layer.range.copy_(0.003 * torch.randn(layer.range.shape))
    moved = replace(start, model=model.eval())
    source, towers = finished(moved)
    return moved, source, towers["image"]


def trained(bytes_: str = "uint8") -> tuple[Source, Source, dict[str, Finished]]:
    return _trained(bytes_)


@cache
def trained_graph(bytes_: str = "uint8") -> ir.Model:
    return graph(trained(bytes_)[1], "image")


@pytest.mark.parametrize("bytes_", ["uint8", pytest.param("int8", marks=pytest.mark.parity)])
def test_after_training_the_compressors_graph_is_it(bytes_: str, tmp_path: Path) -> None:
    moved, source, known = trained(bytes_)
    save_ranges(tmp_path / "ranges", {"image": known})
    read = load_ranges(tmp_path / "ranges")["image"]
    made = convert(trained_graph(bytes_), "int8", Request(finished=read))
    np.testing.assert_allclose(rows(made.model, PIXELS), embedded(moved, "image"), rtol=0, atol=TOLERANCE)
    assert type(source.model) is Clip
    assert np.abs(embedded(source, "image") - embedded(moved, "image")).max() > 1e-3  # that one is float
    report = next(one for one in made.reports if one.name == "int8")
    assert report.changed == 4
    assert {miss.partition(":")[0] for miss in report.near_misses} == {"projection.weight", "patches.weight"}
    if bytes_ == "int8":
        assert {known.x.zero.dtype for known in read.values()} == {np.dtype(np.int8)}


@pytest.mark.parity
def test_the_graph_is_of_the_compressors_form() -> None:
    """The same operators in the same order, the same bytes: at the start only the last bit of scales and biases may differ."""
    _, start, int8 = begun()
    source, towers = finished(start)
    made = convert(graph(source, "image"), "int8", Request(finished=towers["image"])).model
    assert [node.op_type for node in made.graph] == [node.op_type for node in int8.graph]
    ours, theirs = made.graph.initializers, int8.graph.initializers
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        want, have = (np.asarray(one.const_value.numpy()) for one in (value, ours[name]))  # type: ignore[union-attr]
        assert want.dtype == have.dtype
        exact = want.dtype != np.float32
        np.testing.assert_allclose(have, want, rtol=0 if exact else 2e-6, atol=0 if exact else 1e-6 * np.abs(want).max(), err_msg=name)  # fmt: skip


def test_some_layers_may_be_left_in_float() -> None:
    known = trained()[2]
    names = frozenset(list(known)[:3])
    made = convert(trained_graph(), "int8", Request(finished=known, layers=names))
    assert {layer.name for layer in linears(made.model)} == {*known, "projection.weight"} - names
    with pytest.raises(InputError, match=r"layers: 'patches\.weight' was not finished in int8"):
        convert(trained_graph(), "int8", Request(finished=known, layers=frozenset({"patches.weight"})))


def test_ranges_of_another_student_are_refused() -> None:
    plain, _, _ = begun()
    known = trained()[2]
    with pytest.raises(InputError, match=r"the weights of blocks\.0\.qkv\.weight are not on the grid"):
        convert(plain, "int8", Request(finished=known))
    with pytest.raises(
        InputError, match=r"the graph has no layer 'blocks\.7\.qkv\.weight'. They belong to another"
    ):
        convert(plain, "int8", Request(finished={"blocks.7.qkv.weight": known["blocks.0.qkv.weight"]}))
    short = replace(known["blocks.0.qkv.weight"], largest=np.array([127], np.uint8))
    with pytest.raises(InputError, match="has 144 outputs, not 1"):
        convert(plain, "int8", Request(finished={"blocks.0.qkv.weight": short}))
    with pytest.raises(InputError, match="precision int8-dynamic: the student was finished for int8"):
        convert(plain, "int8-dynamic", Request(finished=known))


def test_trap_bytes_that_narrow_sums_do_not_hold() -> None:
    """Full bytes saturate without VNNI, and nothing in the graph would say so."""
    model, wide = trained_graph().clone(), {}
    for layer in linears(model)[:1]:
        q = np.full(layer.weight.shape, 100, np.float32)
        value = layer.node.inputs[1]
        assert value is not None
        value.const_value = ir.tensor(q * np.float32(0.01))
        wide[layer.name] = replace(trained()[2][layer.name], largest=np.full(q.shape[1], 100, np.uint8))
    assert convert(model, "int8", Request(finished=wide, saturating=False))
    with pytest.raises(InputError, match="two of its weights have 200, 128 is the most here"):
        convert(model, "int8", Request(finished=wide))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot read it"),
        (lambda path: path.unlink(), "cannot read it"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"edgeclip.finished", b"edgeclip.something")[:]), "cannot read it"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_ranges_is_refused(spoil: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "finished.safetensors"
    save_ranges(path, {"image": trained()[2]})
    spoil(path)
    with pytest.raises(
        InputError, match=rf"finished\.safetensors: expected the ranges that finishing leaves.*{said}"
    ):
        load_ranges(path)


@pytest.mark.parametrize(
    ("scale", "zero", "said"),
    [(np.nan, 3, "a scale is nan"), (0.0, 3, "a scale is 0.0"), (0.1, -3, "a zero point is -3 int8")],
)
def test_ranges_that_are_none_are_refused(scale: float, zero: int, said: str, tmp_path: Path) -> None:
    one = next(iter(trained()[2].values()))
    bad = replace(
        one, x=replace(one.x, scale=np.float32(scale), zero=np.array(zero, np.int8 if zero < 0 else np.uint8))
    )
    save_ranges(tmp_path / "r", {"image": {"blocks.0.qkv.weight": bad}})
    with pytest.raises(InputError, match=said):
        load_ranges(tmp_path / "r")


def test_who_cannot_be_finished() -> None:
    with pytest.raises(InputError, match="a NanoCLIP cannot be finished in int8, only a plain CLIP"):
        calibrated(nano_source(), INPUTS)
    with pytest.raises(InputError, match="mixtures of experts cannot be finished"):
        calibrated(moe_source(), INPUTS)
    source = clip_source()
    with torch.no_grad():
        source.model.image.blocks[0].mlp.fc1.weight[3, 3] = torch.nan
    with pytest.raises(InputError, match=r"image\.blocks\.0\.mlp\.fc1\.weight holds NaN"):
        calibrated(source, INPUTS)
    with pytest.raises(InputError, match="no layer can be finished in int8"):
        calibrated(one_tower(clip_source("resnet", 1), "image"), {"image": PIXELS})
    with pytest.raises(InputError, match="do not go through bytes"):
        finished(clip_source())
    with pytest.raises(SourceError, match=r"on its way to int8.*Export the folder `model`"):
        tower_of(begun()[1], "image")


def test_settings_are_checked() -> None:
    for changes, said in (
        ({"steps": 1}, "steps: expected 2 or more"),
        ({"settle": 1.0}, "settle: expected above 0, below 1"),
        ({"towers": ("detector",)}, "towers: expected image, text or both"),
        ({"samples": 2}, "samples: expected 8 or more"),
        ({"learning_rate": 0.0}, "learning_rate: expected above 0"),
        ({"bytes_": "int4"}, "bytes_: expected uint8 or int8"),
    ):
        with pytest.raises(InputError, match=f"finishing, {said}"):
            QatSettings(**changes)  # type: ignore[arg-type]


RECIPE = tiny(steps=12)
LAYERS = ("image.blocks.0.mlp.fc1", "image.blocks.0.mlp.fc2", "text.blocks.0.mlp.fc1")


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing is what takes the time: ranges that are merely plausible do here."""

    def plausible(source: Source, inputs: Any, **rest: Any) -> Source:
        assert {name: len(rows) for name, rows in inputs.items()} == {"image": 16, "text": 16}
        made = QuantisedClip.of(load_source(source.spec).model, LAYERS, bytes_="uint8", saturating=True)  # type: ignore[arg-type]
        for layer in made.quantised().values():
            layer.scale.fill_(8 / 255)
            layer.zero.fill_(100)
        return replace(source, model=made)

    monkeypatch.setattr(qat, "calibrated", plausible)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Source:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student") / "s"
    write_source(folder, from_scratch(RECIPE))
    return load_source(str(folder))


SHORT = QatSettings(steps=8, samples=16, learning_rate=1e-3)


def done(student: Source, output: Path, recipe: Recipe = RECIPE, settings: QatSettings = SHORT) -> Finishing:
    return finish(student, recipe, output, settings, progress=False)


def test_a_killed_finishing_goes_on_to_the_same_weights(
    student: Source, tmp_path: Path, untraced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = done(student, tmp_path / "whole")
    real, seen = qat.train, list[str]()

    def stopped(recipe: Recipe, output: Path, **rest: Any) -> Any:
        seen.append(output.name)
        if output.name == "settle":
            raise KeyboardInterrupt
        return real(recipe, output, **rest)

    monkeypatch.setattr(qat, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        done(student, tmp_path / "killed")
    assert seen == ["learn", "settle"]
    monkeypatch.setattr(qat, "train", real)
    (tmp_path / "killed").rename(tmp_path / "moved")
    again = done(student, tmp_path / "moved")
    for name in ("model/model.safetensors", "finished.safetensors"):
        assert (tmp_path / "moved" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (again.score, again.start_score, again.float_score) == (
        whole.score,
        whole.start_score,
        whole.float_score,
    )
    assert None not in (again.score, again.start_score, again.float_score)


def test_ranges_are_learned_and_then_held(student: Source, tmp_path: Path, untraced: None) -> None:
    done(student, tmp_path / "f")
    first, learned, settled = (
        load_file(tmp_path / "f" / name / "model.safetensors")
        for name in ("start", "learn/model", "settle/model")
    )
    ranges = {name for name in first if name.endswith(".range")}
    assert len(ranges) == len(LAYERS)
    for name in ranges:
        assert not torch.equal(first[name], learned[name])
        assert torch.equal(learned[name], settled[name])
    for name in (f"{layer}.weight" for layer in LAYERS):
        assert not torch.equal(learned[name], settled[name])


def test_a_finishing_that_makes_it_worse_is_thrown_away(
    student: Source,
    tmp_path: Path,
    untraced: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(qat, "_score", lambda run, step: 0.99)
    found = done(student, tmp_path / "f")
    assert (found.learned, found.score) == (False, 0.99)
    assert "its start 0.9900: the start is kept" in caplog.text
    kept = load_file(found.model / "model.safetensors")
    start = finished(load_source(str(tmp_path / "f" / "start")))[0].model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in start.items())


def test_what_finishing_refuses(
    student: Source, tmp_path: Path, untraced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError, match="expected finite numbers"):
        done(student, tmp_path / "nan", settings=replace(SHORT, learning_rate=1e30))
    with pytest.raises(InputError, match=r"was begun with settings .*Name another folder"):
        done(student, tmp_path / "nan")
    with pytest.raises(InputError, match="was begun with student "):
        done(replace(student, digest="other"), tmp_path / "nan", settings=replace(SHORT, learning_rate=1e30))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something else than a finishing"):
        done(student, tmp_path / "other")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="runs in one process"):
        done(student, tmp_path / "many")


@pytest.mark.parity
def test_from_a_trained_student_to_a_compressed_bundle(student: Source, tmp_path: Path) -> None:
    """The whole way, through the command line; what is not faster at this size is written as unproven."""
    found = finish(student, RECIPE, tmp_path / "f", SHORT, progress=False)
    export_bundle(load_source(str(found.model)), tmp_path / "b")
    said = ["--ranges", str(found.ranges), "--budget", "distance=0.5", "--unproven", "--precision", "int8"]
    assert run(["compress", str(tmp_path / "b"), "-o", str(tmp_path / "c"), *said]) == 0
    bundle = open_bundle(tmp_path / "c")
    for kind, known in load_ranges(found.ranges).items():
        variant = next(v for v in bundle.manifest.variants_of(kind) if v.axes.precision == "int8")
        model = ir.load(bundle.path(variant.files[0]))
        for name, one in known.items():
            q = array_of(model.graph.initializers[f"{name}.int8"])
            assert q is not None
            np.testing.assert_array_equal(np.abs(q.astype(int)).max(axis=0), one.largest)
    evidence = bundle.manifest.provenance["history"][-1]["compress"]
    assert len(evidence["ranges"]) == 64
