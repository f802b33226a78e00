"""From a source to a bundle: what is in it, what refuses to become one, and what is left when it fails."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import edgeclip
from edgeclip.bundle import open_bundle
from edgeclip.cli import run
from edgeclip.errors import BundleError, CheckFailed, InputError
from edgeclip.export import clip_towers, parity, traced
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.export.samples import TEXTS, encode, made_up_pictures, pictures_in, pixels_of, texts_in
from edgeclip.models.sources import save_source
from edgeclip.runtime.verify import verify
from tests.export.sources import PREPROCESSING, clip_source, nano_source, one_tower

PORTABLE = ExportSettings(targets=("portable",))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A CLIP of one layer and the report of its export, both flavours, from a folder of pictures."""
    folder = tmp_path_factory.mktemp("exported")
    photos = folder / "photos"
    photos.mkdir()
    for i, picture in enumerate(made_up_pictures(10)):
        Image.fromarray(picture).save(photos / f"{i}.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    source = clip_source(layers=1)
    source = replace(source, licence=replace(source.licence, warnings=("research only",)))
    steps: list[str] = []
    report = export_bundle(
        source,
        folder / "bundle",
        settings=ExportSettings(images=photos, revision="abc"),
        tell=lambda name, seconds: steps.append(name) if seconds is None else None,
    )
    return source, report, steps


def test_the_bundle_gives_what_the_source_gives(exported: Any) -> None:
    source, report, _ = exported
    texts = ["a photo of a cat", "", "another, longer text than the tower can take"]
    pictures = made_up_pictures(3)
    with edgeclip.load(report.bundle.root) as model, torch.no_grad():
        pixels = torch.from_numpy(pixels_of(pictures, source.preprocessing))
        want = F.normalize(source.model.encode_image(pixels), dim=-1).numpy()
        np.testing.assert_allclose(model.embed_images(pictures), want, rtol=0, atol=1e-6)
        ids = torch.from_numpy(model.encode_texts(texts).input_ids)
        want = F.normalize(source.model.encode_text(ids), dim=-1).numpy()
        np.testing.assert_allclose(model.embed_texts(texts), want, rtol=0, atol=1e-6)


def test_the_manifest_says_what_was_done(exported: Any) -> None:
    _, report, _ = exported
    manifest = open_bundle(report.bundle.root).manifest
    assert [variant.id for variant in manifest.variants] == [
        "image-fp32-decomposed", "image-fp32-op", "text-fp32-decomposed", "text-fp32-op",
    ]  # fmt: skip
    assert manifest.variants[0].requires == {"onnxruntime": "1.23", "ir": "10", "tensorrt": "10.3"}
    assert [v.requires["tensorrt"] for v in manifest.variants] == ["10.3", "10.16", "10.3", "10.16"]
    assert manifest.variants[1].axes.opset == 23
    assert manifest.variants[2].inputs[0].shape == ("N", "L")
    assert manifest.logit_scale == pytest.approx(1 / 0.07, rel=1e-6)
    assert manifest.provenance["revision"] == "abc"
    assert manifest.provenance["versions"]["torch"] == torch.__version__
    assert manifest.licence.warnings == report.warnings == ("research only",)
    for variant in manifest.variants:
        assert variant.fidelity is not None
        assert variant.fidelity.samples == (10 if variant.tower == "image" else len(TEXTS) + 3)
        assert 0 < variant.fidelity.max_abs < 1e-6
        assert variant.fidelity.top1_agreement == 1
    assert report.to_dict()["variants"][0]["batches"] < 1e-6
    assert json.dumps(report.to_dict())


def test_the_bundle_verifies_and_a_damaged_weight_is_found(exported: Any, tmp_path: Path) -> None:
    _, report, _ = exported
    copy = tmp_path / "copy"
    shutil.copytree(report.bundle.root, copy)
    assert all(check.passed for check in verify(open_bundle(copy)).checks)
    graph = copy / "graphs" / "image-fp32-decomposed.onnx"
    raw = bytearray(graph.read_bytes())
    raw[len(raw) // 2] ^= 1
    graph.write_bytes(raw)
    with pytest.raises(CheckFailed, match=r"image-fp32-decomposed\.onnx"):
        verify(open_bundle(copy)).require()
    graph.write_bytes(raw[:-100])
    with pytest.raises(BundleError, match="half copied"):
        open_bundle(copy)


def test_steps_are_told_and_timed(exported: Any) -> None:
    _, report, steps = exported
    assert steps == list(report.seconds)
    assert {"trace the image tower", "compare image-fp32-op with the source"} <= set(steps)
    assert all(seconds > 0 for seconds in report.seconds.values())


def test_the_identity_stays_and_a_second_export_is_the_same(exported: Any, tmp_path: Path) -> None:
    source, report, _ = exported
    again = export_bundle(source, tmp_path / "again", settings=PORTABLE)
    assert again.bundle.manifest.model_id == report.bundle.manifest.model_id
    name = "graphs/image-fp32-decomposed.onnx"
    assert again.bundle.manifest.files[name] == report.bundle.manifest.files[name]


@pytest.fixture(scope="module")
def whole_nano(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The manifest of a NanoCLIP that comes from other files than `exported`."""
    return export_bundle(
        nano_source(digest="1" * 64), tmp_path_factory.mktemp("nano") / "out"
    ).bundle.manifest


def test_other_files_are_another_model(exported: Any, whole_nano: Any) -> None:
    assert whole_nano.model_id != exported[1].bundle.manifest.model_id


def test_nano_is_one_plain_variant_a_tower_and_fp16_halves_it(whole_nano: Any, tmp_path: Path) -> None:
    source, whole = nano_source(), whole_nano
    assert [v.id for v in whole.variants] == ["image-fp32", "text-fp32"]
    half = export_bundle(source, tmp_path / "half", settings=ExportSettings(store="fp16")).bundle.manifest
    assert [(v.id, v.axes.precision) for v in half.variants] == [
        ("image-fp16", "fp16"),
        ("text-fp16", "fp16"),
    ]
    for a, b in zip(whole.variants, half.variants, strict=True):
        assert half.files[b.files[0]].size < 0.75 * whole.files[a.files[0]].size
        assert b.fidelity is not None
        assert 1e-5 < b.fidelity.relative_distance < 0.01  # rounding is seen, and small


def test_a_wrong_activation_fails_the_gate_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced, "activate", lambda x, name: F.gelu(x))  # the source has QuickGELU
    with pytest.raises(
        CheckFailed, match=r"image-fp32-decomposed: max_abs to the source is \d\.\d+e-0[2-4] over 16"
    ):
        export_bundle(one_tower(clip_source(layers=1), "image"), tmp_path / "out", settings=PORTABLE)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_bundle_is_kept_on_request(tmp_path: Path) -> None:
    settings = replace(PORTABLE, tolerance=1e-12, keep_failed=True)
    with pytest.raises(CheckFailed, match="1e-12 is allowed"):
        export_bundle(nano_source(), tmp_path / "out", settings=settings)
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]
    fidelity = open_bundle(tmp_path / "out.failed").manifest.variants[0].fidelity
    assert fidelity is not None
    assert 1e-12 < fidelity.max_abs < 1e-6


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "not finite"), (0.0, "give the same embedding")]
)
def test_unfit_sources_are_refused(value: float, message: str, tmp_path: Path) -> None:
    source = clip_source()
    with torch.no_grad():
        source.model.image.patches.weight.fill_(value)  # type: ignore[union-attr, operator]
    steps: list[str] = []
    with pytest.raises(CheckFailed, match=f"made-up: image tower of the source: .*{message}"):
        export_bundle(source, tmp_path / "out", tell=lambda name, seconds: steps.append(name))
    assert list(tmp_path.iterdir()) == []
    assert set(steps) == {"run the source on pictures and texts"}, "it was traced all the same"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows * np.float32("nan"), "exported graph: 16 of 16 embeddings are not finite"),
        (
            lambda rows: np.repeat(rows[:1], len(rows), 0),
            "exported graph: 16 different samples give the same",
        ),
    ],
)
def test_graphs_that_give_nonsense_fail_the_gate(
    spoil: Any, message: str, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parity._rows
    monkeypatch.setattr(parity, "_rows", lambda engine, inputs, batch: spoil(real(engine, inputs, batch)))
    found = compared(exported)
    assert found.fidelity is None
    with pytest.raises(CheckFailed, match=f"out: image-fp32-decomposed: {message}"):
        parity.require([found], "out")


def compared(exported: Any, tolerance: float | None = None) -> parity.Parity:
    """The exported bundle's first variant, compared with its source once more."""
    source, report, _ = exported
    pixels = pixels_of(made_up_pictures(), source.preprocessing)
    encoded = encode(TEXTS, report.bundle.root / "tokenizer.json", source.text)
    samples = parity.Samples(pixels, encoded, *parity.source_rows(source, pixels, encoded.input_ids))
    variant = report.bundle.manifest.variants[0]
    return parity.compare(report.bundle, variant, samples, tolerance=tolerance, threads=1)


def test_rows_that_depend_on_the_batch_are_found(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared(exported).failures == ()
    real = parity._rows
    monkeypatch.setattr(
        parity, "_rows", lambda engine, inputs, batch: real(engine, inputs, batch) + (batch == 3) * 1e-4
    )
    (failure,) = compared(exported).failures
    assert failure.endswith("rows differ by 1.0e-04 between batch sizes (1, 3, 8), 2e-06 is allowed")


def test_texts_that_feel_their_padding_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = one_tower(
        clip_source("coca-avg", layers=1), "text"
    )  # not causal: with its mask gone, padding is attended to
    monkeypatch.setattr(clip_towers, "MASKED", 0.0)
    with pytest.raises(CheckFailed, match=r"text-fp32-decomposed: max_abs"):
        export_bundle(source, tmp_path / "out", settings=PORTABLE)


def test_what_cannot_be_used_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("keep")
    source = clip_source()
    for message, output, settings in (
        ("there: already exists", "there", ExportSettings()),
        ("target 'tflite': unknown", "out", ExportSettings(targets=("tflite",))),
        ("--images .*nowhere: no such folder", "out", ExportSettings(images=tmp_path / "nowhere")),
        ("--images .*there: holds no pictures", "out", ExportSettings(images=tmp_path / "there")),
        ("--texts .*nowhere: cannot be read", "out", ExportSettings(texts=tmp_path / "nowhere")),
        ("--tolerance: expected a number above 0, got nan", "out", ExportSettings(tolerance=float("nan"))),
    ):
        with pytest.raises(InputError, match=message):
            export_bundle(source, tmp_path / output, settings=settings)
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "mine.txt"]


def test_pictures_and_texts_are_read_as_given(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in pictures_in(tmp_path)] == ["a.jpg", "b.png"]
    with pytest.raises(InputError, match="at least 2 usable pictures, found 0"):
        pixels_of(pictures_in(tmp_path), PREPROCESSING)
    lines = tmp_path / "lines.txt"
    lines.write_text("\ufeffone\n\n  \ntwo\n", encoding="utf-8")
    assert texts_in(lines) == ("one", "two")
    lines.write_text("one\n")
    with pytest.raises(InputError, match="at least 2 lines"):
        texts_in(lines)


def test_made_up_pictures_are_fixed_and_differ() -> None:
    pictures = made_up_pictures()
    assert [int(p.astype(np.int64).sum()) for p in pictures[:2]] == [
        int(p.astype(np.int64).sum()) for p in made_up_pictures(2)
    ]
    assert len({p.tobytes() for p in pictures}) == len(pictures) == 16
    assert len({p.shape for p in pictures}) > 4


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = nano_source()
    save_source(
        tmp_path / "source", model=source.model, preprocessing=source.preprocessing, text=source.text,
        tokenizer_json=source.tokenizer_json, licence=source.licence,
    )  # fmt: skip
    spec, output = str(tmp_path / "source"), str(tmp_path / "bundle")
    portable = ["export", spec, "-o", output, "--target", "portable"]
    assert run([*portable, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == output
    assert [v["variant"] for v in report["variants"]] == ["image-fp32", "text-fp32"]
    assert run(["verify", output]) == 0
    capsys.readouterr()

    assert run(portable) == 2
    assert "already exists" in capsys.readouterr().err
    assert run([*portable, "--overwrite", "--tolerance", "1e-12"]) == 1
    assert "max_abs to the source is" in capsys.readouterr().err
    assert open_bundle(output).manifest.name == "source"  # the old one is still there
    assert run(["export", spec, "-o", output, "--target", "abacus"]) == 2
    assert "target 'abacus': unknown" in capsys.readouterr().err
    assert run(["export", str(tmp_path / "nothing"), "-o", str(tmp_path / "x")]) == 2
    assert "no such source" in capsys.readouterr().err
    weights = tmp_path / "source" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert run(["export", spec, "-o", str(tmp_path / "x")]) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
