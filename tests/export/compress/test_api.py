"""From a bundle to a smaller one: what is chosen, what is refused, and the evidence that stays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip.bundle import Bundle, open_bundle
from edgeclip.cli import run
from edgeclip.errors import CheckFailed, InputError
from edgeclip.export.compress import bench
from edgeclip.export.compress.api import CompressSettings, NothingFits, compress_bundle
from edgeclip.export.compress.budget import parse_budgets
from edgeclip.export.compress.data import read_data
from edgeclip.export.compress.target import measure_bundle
from edgeclip.export.derive import NewVariant, derive_bundle, read_graph
from edgeclip.export.samples import pixels_of
from edgeclip.export.uint8_input import take_uint8, uint8_port
from edgeclip.runtime.fidelity import relative_distance
from edgeclip.runtime.verify import verify
from tests.export.compress import toy_method
from tests.export.sources import PREPROCESSING

Speed = Callable[[float], None]


def settings(classes: Path, *budgets: str, **changes: Any) -> CompressSettings:
    wanted = CompressSettings(parse_budgets(budgets), ("int8",), ("image",), images=classes, threads=1)
    return replace(wanted, **changes)


def test_the_first_variant_is_the_compressed_one(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: Any, speed: Speed
) -> None:
    report = compress_bundle(tiny, tmp_path / "out", settings=settings(classes, towers=()))
    manifest = open_bundle(tmp_path / "out").manifest
    assert [v.id for v in manifest.variants] == [
        "image-int8", "text-int8", "image-fp32", "text-fp32",
    ]  # fmt: skip
    new = manifest.variants[0]
    assert (new.axes.precision, new.axes.activations, new.proven) == ("int8", "static", ("onnxruntime-cpu",))
    assert manifest.model_id == tiny.manifest.model_id
    evidence = manifest.provenance["history"][-1]["compress"]
    assert evidence == json.loads(json.dumps(report.evidence()))
    assert evidence["budgets"] == ["distance=0.1"]
    # 24 pictures and a second copy of one, a broken one; two calibrate for each that is held out at an even place
    assert evidence["samples"]["pictures_calibration"] == evidence["samples"]["pictures_held_out"] == 12
    assert evidence["target"]["onnxruntime"]
    verdicts = [(p["tower"], p["method"], p["verdict"]) for p in evidence["curve"]]
    assert verdicts == [
        (t, m, v) for t in ("image", "text") for m, v in (("float", "reference"), ("int8", "chosen"))
    ]
    assert verify(report.bundle, threads=1).to_dict()["passed"]


def test_the_manifest_states_the_held_out_half(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: Any, speed: Speed
) -> None:
    """Against the two variants run by the runtime, on the pictures that nothing was fitted on."""
    report = compress_bundle(tiny, tmp_path / "out", settings=settings(classes))
    data = read_data(tiny, images=classes, texts=None, labels=(), labels_from=None)
    pixels = data.pixels["float32"][1::2]
    paths = sorted(p for p in classes.rglob("*.png") if "again" not in p.name)
    np.testing.assert_array_equal(pixels, pixels_of(paths, PREPROCESSING)[1::2])
    rows = {}
    for name in ("image-fp32", "image-int8"):
        with edgeclip.load(tmp_path / "out", variants=[name], threads=1) as model:
            rows[name] = model.embed_pixels(pixels).astype(np.float64)
    new = open_bundle(tmp_path / "out").manifest.variants[0]
    assert new.fidelity is not None
    assert new.fidelity.against == "image-fp32"
    assert new.fidelity.samples == 12
    assert new.fidelity.relative_distance == pytest.approx(relative_distance(*rows.values()), rel=1e-4)
    held_out = report.chosen["image"].held_out
    assert held_out is not None
    assert held_out.distance == pytest.approx(new.fidelity.relative_distance, rel=1e-6)
    cosines = (rows["image-fp32"] * rows["image-int8"]).sum(axis=1)
    assert new.fidelity.cosine_mean == pytest.approx(cosines.mean(), abs=1e-7)


def test_the_planted_layer_is_the_one_left_in_float(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: dict[str, int], speed: Speed
) -> None:
    toy["blocks.1.mlp.fc1.weight"] = 1
    report = compress_bundle(tiny, tmp_path / "out", settings=settings(classes, "distance=0.04"))
    chosen = report.chosen["image"]
    assert chosen.left == ("blocks.1.mlp.fc1.weight",)
    assert chosen.held_out is not None
    assert chosen.held_out.distance <= 0.04
    (whole,) = [p for p in report.points if p.method == "int8" and not p.left]
    assert whole.figures is not None
    assert whole.figures.distance > 0.1, "nothing had to be mended"
    (order,) = report.results[0].sensitivities.values()
    assert order[0].layers == chosen.left
    assert order[0].distance > 3 * order[1].distance
    assert whole.size_bytes < chosen.size_bytes < report.points[0].size_bytes
    graph = read_graph(report.bundle, report.bundle.manifest.variants[0])
    assert "blocks.1.mlp.fc1.weight" in graph.graph.initializers
    assert "blocks.1.mlp.fc2.weight" not in graph.graph.initializers


@pytest.mark.parametrize(
    ("ratio", "changes", "message"),
    [
        (1.03, {}, "image-fp32: int8: not faster than image-fp32 on .*: 1.03x (0.98-1.08), 9.71 ms"),
        (1.9, {"budgets": parse_budgets(["cosine=1"])}, "int8: out of budget on the calibration half: cosine 0.999"),
        (0.5, {"towers": ("image", "text")}, "; text-fp32: int8: not faster than text-fp32 on .*: 0.50x (0.45-0.55)"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_nothing_behind(
    ratio: float,
    changes: Any,
    message: str,
    tiny: Bundle,
    classes: Path,
    tmp_path: Path,
    toy: Any,
    speed: Speed,
) -> None:
    speed(ratio)
    with pytest.raises(NothingFits) as caught:
        compress_bundle(tiny, tmp_path / "out", settings=settings(classes, **changes))
    before, _, after = message.partition(".*")
    assert before in str(caught.value)
    assert after in str(caught.value)
    assert "refused" in [point.verdict for point in caught.value.points]
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_faster_may_still_be_smaller(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: Any, speed: Speed
) -> None:
    speed(0.8)
    report = compress_bundle(tiny, tmp_path / "out", settings=settings(classes, aim="size", drop_float=True))
    manifest = report.bundle.manifest
    assert [v.id for v in manifest.variants] == ["image-int8", "text-fp32"]
    assert manifest.variants[0].proven == (), "nobody has shown that it is faster"
    assert sum(f.size for f in manifest.files.values()) < sum(f.size for f in tiny.manifest.files.values())


def test_a_method_that_gives_nonsense_is_a_refusal(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: dict[str, int], speed: Speed
) -> None:
    toy["refuse"] = 1
    with pytest.raises(NothingFits, match="image-fp32: int8: toy: the result is not finite"):
        compress_bundle(tiny, tmp_path / "out", settings=settings(classes))


def test_a_tower_that_was_asked_for_must_end_compressed(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: dict[str, int], speed: Speed
) -> None:
    toy["refuse int32"] = 1  # the text tower's inputs
    with pytest.raises(NothingFits, match=r"not written\. text-fp32: int8: toy"):
        compress_bundle(tiny, tmp_path / "out", settings=settings(classes, towers=("image", "text")))
    report = compress_bundle(tiny, tmp_path / "out", settings=settings(classes, towers=()))
    assert list(report.chosen) == ["image"]
    assert report.refusals == ["text-fp32: int8: toy: the result is not finite"]


def test_a_wide_budget_is_what_verify_holds_it_to(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: dict[str, int], speed: Speed
) -> None:
    toy |= {f"blocks.{i}.mlp.fc{k}.weight": 1 for i in (0, 1) for k in (1, 2)}
    done = compress_bundle(tiny, tmp_path / "out", settings=settings(classes, "distance=2")).bundle
    fidelity = done.manifest.variants[0].fidelity
    assert fidelity is not None
    assert fidelity.relative_distance > 0.15, "the bound of int8 is not reached: nothing is shown"
    better = replace(done.manifest.variants[0], fidelity=replace(fidelity, relative_distance=0.01))
    lying = replace(done, manifest=replace(done.manifest, variants=(better,)))
    (failed,) = [check for check in verify(lying, threads=1).checks if not check.passed]
    assert failed.name == "image-int8"
    assert "relative distance to the golden rows is" in failed.detail


@pytest.mark.parametrize("what", ["twice", "nothing to convert"])
def test_what_changes_nothing_is_refused(
    what: str,
    tiny: Bundle,
    classes: Path,
    tmp_path: Path,
    toy: Any,
    speed: Speed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, message = tiny, "int8: no layer was converted"
    if what == "twice":
        bundle = compress_bundle(tiny, tmp_path / "once", settings=settings(classes)).bundle
        message = "int8: the bundle has image-int8 already. Start from a bundle without it"
    else:
        monkeypatch.setattr(toy_method, "linears", lambda model: [])
    with pytest.raises(NothingFits, match=message):
        compress_bundle(bundle, tmp_path / "out", settings=settings(classes))


def test_rows_that_feel_their_batch_mates_come_second(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: Any, speed: Speed, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = bench.Graph.rows
    monkeypatch.setattr(
        bench.Graph, "rows", lambda self, which, batch=8: plain(self, which, batch) + 1e-3 * (batch == 3)
    )
    both = settings(classes, methods=("int8-dynamic", "int8"))
    report = compress_bundle(tiny, tmp_path / "out", settings=both)
    assert report.chosen["image"].method == "int8"
    assert report.chosen["image"].batch_change == pytest.approx(1e-3 * 24**0.5 / 0.5, rel=0.9)
    assert [p.verdict for p in report.points] == ["reference", "fits", "chosen"]


def test_the_held_out_half_has_the_last_word(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: Any, speed: Speed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fits on the calibration half and not here leaves more layers in float, and is refused in the end."""
    plain = bench.Bench.finish

    def worse(self: Any, candidate: Any) -> Any:
        done = plain(self, candidate)
        far = replace(done.point.held_out, distance=0.5 if len(done.point.left) < enough else 0.01)
        return replace(done, point=replace(done.point, held_out=far))

    monkeypatch.setattr(bench.Bench, "finish", worse)
    enough = 2
    report = compress_bundle(tiny, tmp_path / "out", settings=settings(classes))
    assert len(report.chosen["image"].left) == 2
    assert report.refusals == [], "what was mended is no refusal"
    verdicts = [p.verdict for p in report.points]
    assert verdicts[0] == "reference"
    assert set(verdicts[1:]) == {"refused", "step", "chosen"} or set(verdicts[1:]) == {"refused", "chosen"}
    enough = 99
    message = r"out of budget on the held-out half: distance 0\.5, at most 0\.1 allowed"
    with pytest.raises(NothingFits, match=message) as caught:
        compress_bundle(tiny, tmp_path / "again", settings=settings(classes))
    assert len(caught.value.points) <= 2 + 3, "more looks at the held-out half than bisecting needs"


def test_top1_is_accuracy_where_labels_are_known(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: dict[str, int], speed: Speed
) -> None:
    asked = settings(classes, "top1=-100", images=None, labels_from=classes, towers=())
    report = compress_bundle(tiny, tmp_path / "out", settings=asked)
    data = read_data(tiny, images=None, texts=None, labels=(), labels_from=classes)
    assert data.truth is not None
    assert data.labels is not None
    assert data.labels.names == ("a cat", "a dog")
    with edgeclip.load(tmp_path / "out", variants=["image-int8", "text-fp32"]) as model:
        right = []
        for name in ("image-int8", "image-fp32"):
            with edgeclip.load(tmp_path / "out", variants=[name, "text-fp32"], threads=1) as one:
                rows = one.embed_pixels(data.pixels["float32"][1::2])
            best = (rows @ model.make_labels(data.labels.names).vectors.T).argmax(axis=1)
            right.append((best == data.truth[1::2]).mean())
    held_out = report.chosen["image"].held_out
    assert held_out is not None
    assert held_out.top1 == pytest.approx(100 * (right[0] - right[1]))
    assert not isinstance(report.refit, str), report.refit
    assert report.refit.against == "labels"
    fitted = report.bundle.manifest.variants[0].scores
    assert (fitted == report.refit.scores) is report.refit.kept
    assert report.refit.kept is (report.refit.error_after < report.refit.error_before)


def test_both_towers_together_keep_the_top1_budget(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: Any, speed: Speed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cosines(self: Any, images: Any, texts: Any, half: Any) -> Any:
        """Another answer only where neither tower is fp32's."""
        known = [id(rows) for rows in self.references.values()]
        return np.eye(2)[np.full(12, int(id(images) not in known and id(texts) not in known))]

    monkeypatch.setattr(bench.Bench, "cosines", cosines)
    asked = settings(classes, "top1=-1", towers=(), labels=("a cat", "a dog"))
    message = r"top1: -100\.00 points with both towers compressed, at least -1 allowed"
    with pytest.raises(CheckFailed, match=message):
        compress_bundle(tiny, tmp_path / "out", settings=asked)
    assert compress_bundle(tiny, tmp_path / "out", settings=replace(asked, towers=("image",))).chosen


def test_a_device_report_decides_in_place_of_this_machine(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: Any, speed: Speed, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compress_bundle(tiny, tmp_path / "first", settings=settings(classes)).bundle
    path = tmp_path / "device.json"
    report = measure_bundle(first, threads=1).to_dict() | {"device": "a board", "flags": ["asimd"]}
    assert report["variants"].keys() == {"image-int8"}
    figures = report["variants"]["image-int8"]
    asked = settings(classes, device_report=path)
    for ratio, message in (
        (0.5, "on a board: 0.50x (0.49-0.51)"),
        (None, "speed unproven: .*device.json has no figures"),
    ):
        figures |= {"ratio": ratio, "low": 0.49, "high": 0.51}
        path.write_text(json.dumps(report if ratio else report | {"variants": {}}))
        with pytest.raises(NothingFits) as caught:
            compress_bundle(tiny, tmp_path / "out", settings=asked)
        assert all(part in str(caught.value) for part in message.split(".*"))
    figures |= {"ratio": 2.0, "low": 1.9, "high": 2.1}
    path.write_text(json.dumps(report))
    speed(0.1)  # here it would be refused
    done = compress_bundle(tiny, tmp_path / "out", settings=asked)
    assert done.chosen["image"].latency is not None
    assert done.chosen["image"].latency.device == "a board"
    for here, saturating in ((("avx2",), True), (("avx2", "avx_vnni"), False)):  # fidelity is measured here
        monkeypatch.setattr("edgeclip.runtime.cpu.cpu_flags", lambda flags=here: flags)
        again = compress_bundle(tiny, tmp_path / here[-1], settings=asked)
        assert again.evidence()["saturating"] is toy_method.asked[-1].saturating is saturating
        made = again.bundle.manifest.variants[0]
        assert made.requires.get("byte_sums") == (None if saturating else "wide")
        monkeypatch.setattr("edgeclip.runtime.cpu.cpu_flags", lambda: ("avx2",))
        checks = {check.name: check.detail for check in verify(again.bundle, threads=1).checks}
        assert ("not run here" in checks[made.id]) is not saturating
    assert done.evidence()["target"]["device"] == "a board"


def test_unproven_variants_are_nobodys_first_choice(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: Any, speed: Speed
) -> None:
    speed(0.1)
    report = compress_bundle(tiny, tmp_path / "out", settings=settings(classes, unproven=True))
    assert [v.id for v in report.bundle.manifest.variants] == [
        "image-fp32", "text-fp32", "image-int8",
    ]  # fmt: skip
    assert report.bundle.manifest.variants[-1].proven == ()
    assert report.points[-1].latency is None
    with pytest.raises(InputError, match="--unproven: name what is to be written"):
        compress_bundle(tiny, tmp_path / "x", settings=settings(classes, unproven=True, methods=()))


def test_what_cannot_be_used_is_refused_before_any_work(tiny: Bundle, classes: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    few = tmp_path / "few"
    few.mkdir()
    for name in ("00.png", "02.png"):
        (few / name).write_bytes((classes / "a dog" / name).read_bytes())
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo\n")
    for message, output, changes in (
        ("there: already exists", "there", {}),
        ("--precision int7: unknown. Choose from fp16, ", "out", {"methods": ("int7",)}),
        ("--images .*nowhere: no such folder", "out", {"images": tmp_path / "nowhere"}),
        ("--images: at least 8 different usable pictures are needed .*, found 2", "out", {"images": few}),
        ("--texts .*: at least 8 texts are needed", "out", {"texts": texts}),
        ("--labels-from: brings pictures and labels of its own", "out", {"labels_from": classes}),
        ("--labels-from .*: expected a folder of pictures for each of at least 2 labels", "out", {"labels_from": few, "images": None}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            compress_bundle(tiny, tmp_path / output, settings=settings(classes, **changes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few", "texts.txt", "there"]


def test_the_real_int8(tiny: Bundle, classes: Path, tmp_path: Path, speed: Speed) -> None:
    """The method that users get, from folder to a model that runs."""
    report = compress_bundle(tiny, tmp_path / "out", settings=settings(classes, "distance=0.1", "recall=-10"))
    chosen = report.chosen["image"]
    assert chosen.held_out is not None
    assert 0.001 < chosen.held_out.distance < 0.1
    assert chosen.batch_change is not None
    assert chosen.batch_change < 1e-5, "scales are fixed"
    with edgeclip.load(tmp_path / "out", threads=1) as model:
        found = model.embed_images(sorted(classes.glob("*/0*.png")))
        assert model.info().towers["image"]["variant"] == "image-int8"
    assert np.isfinite(found).all()


def test_every_float_variant_is_a_start(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: Any, speed: Speed
) -> None:
    """Bytes or floats in: the caller chooses, so the best of each is written."""
    plain = tiny.manifest.variants[0]
    graph = read_graph(tiny, plain)
    take_uint8(PREPROCESSING)(graph)
    port = uint8_port(PREPROCESSING)
    bytes_in = replace(plain, id="image-fp32-uint8", axes=replace(plain.axes, input="uint8"), inputs=(port,))
    both = derive_bundle(
        tiny, tmp_path / "both", [NewVariant(bytes_in, graph)], order=lambda found: found[::-1]
    )
    report = compress_bundle(both, tmp_path / "out", settings=settings(classes, drop_float=True))
    assert {v.id for v in report.bundle.manifest.variants} == {"image-int8", "image-int8-uint8", "text-fp32"}
    base, other = (p for p in report.points if p.verdict == "chosen")
    assert (base.base, other.base) == ("image-fp32", "image-fp32-uint8")
    assert base.held_out is not None
    assert other.held_out is not None
    assert other.held_out.distance == pytest.approx(base.held_out.distance, rel=0.1)
    assert toy_method.asked[-1].inputs is not None
    assert toy_method.asked[-1].inputs.dtype == np.uint8
    pictures = sorted(classes.glob("*/0*.png"))
    rows = []
    for name in ("image-int8", "image-int8-uint8"):
        with edgeclip.load(tmp_path / "out", variants=[name], decode="exact", threads=1) as model:
            rows.append(model.embed_images(pictures))
    np.testing.assert_allclose(*rows, rtol=0, atol=0.02)


def test_precisions_of_other_machines_are_judged_and_written(
    tiny: Bundle, classes: Path, tmp_path: Path, speed: Speed
) -> None:
    methods = ("fp16", "bf16", "fp8", "int4")
    asked = settings(classes, "distance=0.5", methods=methods, unproven=True)
    bundle = compress_bundle(tiny, tmp_path / "out", settings=asked).bundle
    variants = {v.axes.precision: v for v in bundle.manifest.variants if v.tower == "image"}
    assert list(variants) == ["fp32", *methods]
    lost = {name: v.fidelity.relative_distance for name, v in variants.items() if v.fidelity}
    assert lost["fp32"] < 1e-5 < lost["fp16"] < 2e-3 < lost["bf16"] < lost["fp8"] < lost["int4"] < 0.5
    # onnxruntime's CPU has hardly a bf16 kernel; its figures come from a graph with the roundings written out
    assert variants["bf16"].requires["engine"] == "gpu"
    assert variants["fp8"].requires["onnxruntime"] == "1.32"  # 1.23 moves a Transpose onto fp8, and stops
    assert variants["int4"].requires["onnxruntime"] == "1.23"
    needs = {name: variants[name].requires["tensorrt"] for name in methods}
    assert needs == {
        "fp16": "10.3",
        "bf16": "10.3",
        "fp8": "10.3",
        "int4": "none",
    }  # in blocks of 16, so small it is
    assert verify(bundle, threads=1).to_dict()["passed"]
    with edgeclip.load(tmp_path / "out", threads=1) as model:
        model.embed_images(np.zeros((32, 32, 3), np.uint8))
        assert model.info().towers["image"]["precision"] == "fp32"
    with pytest.raises(
        NothingFits, match="image-fp32: bf16: speed unproven: onnxruntime cannot open it here"
    ):
        compress_bundle(tiny, tmp_path / "x", settings=replace(asked, unproven=False, methods=("bf16",)))


def test_the_command_line(
    tiny: Bundle, classes: Path, tmp_path: Path, toy: Any, speed: Speed, capsys: pytest.CaptureFixture[str]
) -> None:
    out, curve = tmp_path / "out", tmp_path / "curve.svg"
    asked = [
        "compress",
        str(tiny.root),
        "-o",
        str(out),
        "--images",
        str(classes),
        "--precision",
        "int8",
        "--threads",
        "1",
    ]
    assert run([*asked, "--json", "--picture", str(curve), "--labels", "a cat,a dog"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["path"] == str(out)
    assert [p["verdict"] for p in record["curve"]] == ["reference", "chosen"] * 2
    assert record["scores"]["against"] == "fp32"
    assert "int8 (chosen)" in curve.read_text()
    assert run(["verify", str(out)]) == 0
    capsys.readouterr()

    assert run(asked) == 2
    assert "already exists" in capsys.readouterr().err
    assert run([*asked, "--overwrite", "--for", "size"]) == 0
    said = capsys.readouterr()
    assert "image: int8, 1.90x (1.85-1.95)" in said.out
    assert "within distance=0.1 on held-out samples, verified" in said.out

    speed(0.9)
    assert run([*asked, "--overwrite", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["error"] in said.err
    assert "image-fp32: int8: not faster than image-fp32" in said.err
    assert open_bundle(out).manifest.variants[0].id == "image-int8", "the old one is gone"
    assert run([*asked, "--overwrite"]) == 1
    assert "refused" in capsys.readouterr().out, "no table"

    assert run(["compress", str(out), "--measure-only", "--json", "--threads", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["variants"].keys() == {"image-int8", "text-int8"}
    assert run(["compress", str(out), "--measure-only", "--threads", "1"]) == 0
    assert "image-int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '-o' / '--output'"),
        (["-o", "x", "--picture", "curve.png"], "--picture curve.png: expected a name that ends in .svg."),
        (["-o", "x", "--budget", "cosine"], "--budget cosine: expected FIGURE=NUMBER"),
        (["-o", "x", "--for", "fun"], "Invalid value for '--for'"),
        (["-o", "x", "--device-report", "/no/such.json"], "--device-report /no/such.json: cannot be read (No such file"),
        (["-o", "x", "--labels", "@/no/such"], "--labels @/no/such: cannot read the file"),
    ],
)  # fmt: skip
def test_wrong_command_lines_get_one_line(
    arguments: list[str], message: str, tiny: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compress", str(tiny.root), *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_a_device_needs_neither_torch_nor_onnx_to_report(tiny: Bundle) -> None:
    code = f"""
import sys
for name in ("torch", "onnx", "onnx_ir", "onnxscript", "edgeclip.models"):
    sys.modules[name] = None
from edgeclip.cli import run
sys.exit(run(["compress", {str(tiny.root)!r}, "--measure-only", "--json", "--threads", "1"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["variants"] == {}, "only float variants are there"
