"""The whole path of a user: a folder that transformers saved, the command line, a device without PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import write_hf
from tests.end_to_end.reference import LABELS, TEXTS, Reference, reference
from tests.photographs import pictures

PICTURES = 8
FLOOR = os.environ.get("EDGECLIP_FLOOR", "")
floor_only = pytest.param(
    FLOOR,
    id="oldest onnxruntime",
    marks=pytest.mark.skipif(
        not Path(FLOOR or "-").is_dir(), reason="EDGECLIP_FLOOR names no folder; see Makefile"
    ),
)
engines = pytest.mark.parametrize("floor", [pytest.param("", id="onnxruntime"), floor_only])


@dataclass(frozen=True)
class Way:
    """A source, its bundle, and what transformers says."""

    source: Path
    bundle: Path
    pictures: list[Path]
    wanted: Reference
    report: dict[str, Any]  # of `edgeclip export --json`


def python(*arguments: str | Path, floor: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python; `floor`: with the onnxruntime of that folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if floor:
        environment["PYTHONPATH"] = str(Path(floor).resolve())
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )


def edgeclip(*arguments: str | Path, floor: str = "") -> str:
    """Run the command line, which must succeed. -> its stdout."""
    done = python("-m", "edgeclip", *arguments, floor=floor)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Way:
    """A CLIP of ViT-B/32's real width, heads, resolution and vocabulary with two blocks a tower, exported."""
    folder = tmp_path_factory.mktemp("way")
    files = pictures(folder / "pictures", PICTURES)
    shown = folder / "shown"
    shown.mkdir()
    for path in files:
        (shown / path.name).write_bytes(path.read_bytes())
    model = write_hf(folder / "source", "B/32")
    wanted = reference(model, folder / "source", files)
    output = edgeclip("export", folder / "source", "-o", folder / "bundle", "--images", shown, "--json")
    return Way(folder / "source", folder / "bundle", files, wanted, json.loads(output))


def test_export_reports_what_it_made(way: Way) -> None:
    assert way.report["path"] == str(way.bundle.resolve())
    assert [v["variant"] for v in way.report["variants"]] == [
        "image-fp32-decomposed", "image-fp32-op", "text-fp32-decomposed", "text-fp32-op",
    ]  # fmt: skip
    for variant in way.report["variants"]:
        assert variant["failures"] == []
        assert variant["fidelity"]["max_abs"] <= 1e-6
        assert variant["fidelity"]["top1_agreement"] == 1
        assert variant["batches"] <= 1e-6
    assert way.report["variants"][0]["fidelity"]["samples"] == PICTURES
    assert way.report["licence"]["weights"] == "unknown"
    assert "states no licence" in way.report["warnings"][0]


def test_both_flavours_share_one_file_of_weights(way: Way) -> None:
    manifest = json.loads((way.bundle / "bundle.json").read_text())
    files = {variant["id"]: variant["files"] for variant in manifest["variants"]}
    for tower in ("image", "text"):
        assert files[f"{tower}-fp32-op"][1:] == files[f"{tower}-fp32-decomposed"][1:] != []
    source = (way.source / "model.safetensors").stat().st_size
    assert way.report["size_bytes"] < 1.03 * source, "weights are stored more than once"


@engines
def test_verify_and_inspect_agree_with_the_report(way: Way, floor: str) -> None:
    report = json.loads(edgeclip("verify", way.bundle, "--json", floor=floor))
    assert report["passed"]
    assert [check["name"] for check in report["checks"]] == [
        "hashes", "golden file", "preprocessing", "tokenizer", *(v["variant"] for v in way.report["variants"]),
    ]  # fmt: skip
    shown = json.loads(edgeclip("inspect", way.bundle, "--json"))
    assert shown["model_id"] == way.report["model_id"]
    assert (shown["embedding_dim"], shown["preprocessing"]["size"]) == (512, [224, 224])
    assert shown["text"]["vocab_size"] == 49408
    assert shown["logit_scale"] == pytest.approx(way.wanted.scale, rel=1e-6)
    assert [v["fidelity"] for v in shown["variants"]] == [v["fidelity"] for v in way.report["variants"]]


@engines
def test_a_device_without_pytorch_gives_what_transformers_gives(way: Way, floor: str, tmp_path: Path) -> None:
    job = {"pictures": list(map(str, way.pictures)), "texts": TEXTS, "labels": LABELS}
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    np.save(tmp_path / "pixels.npy", way.wanted.pixels)
    program = Path(__file__).with_name("device.py")
    done = python(
        program, way.bundle, tmp_path / "job.json", tmp_path / "pixels.npy", tmp_path / "out.npz", floor=floor
    )
    assert done.returncode == 0, done.stderr
    got = np.load(tmp_path / "out.npz")
    if floor:
        assert str(got["onnxruntime"]) == "1.23.2"
    assert sorted(got["variants"]) == ["image-fp32-decomposed", "text-fp32-decomposed"]

    want = way.wanted
    np.testing.assert_allclose(got["pixels"], want.images, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got["texts"], want.texts, rtol=0, atol=1e-6)
    apart = np.linalg.norm(want.images[:, None] - want.images[None], axis=2)[np.triu_indices(PICTURES, 1)]
    assert np.median(apart) > 0.02, "pictures make no difference"
    cosines = (got["images"] * want.images).sum(axis=1)
    assert cosines.min() >= 0.9995
    # under random weights two photographs are near each other too: the error must be small beside their distance
    assert np.linalg.norm(got["images"] - want.images, axis=1).max() < 0.05 * np.median(apart)
    np.testing.assert_allclose(got["scores"], want.scores(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(got["scores"].sum(axis=1), 1, rtol=0, atol=1e-6)
    assert (got["best"] == want.scores().argmax(axis=1)).sum() >= PICTURES - 1


def test_a_changed_weight_is_found(way: Way, tmp_path: Path) -> None:
    """The last line of defence, from the outside: one flipped bit in 350 MB."""
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in way.bundle.rglob("*"):
        target = copy / path.relative_to(way.bundle)
        if path.is_dir():
            target.mkdir()
        else:
            target.write_bytes(path.read_bytes())
    weights = next((copy / "graphs").glob("image-*.bin"))
    with weights.open("r+b") as stream:
        stream.seek(123_456)
        (byte,) = stream.read(1)
        stream.seek(123_456)
        stream.write(bytes([byte ^ 1]))
    done = python("-m", "edgeclip", "verify", copy)
    assert done.returncode == 1
    assert weights.name in done.stderr
    assert "Traceback" not in done.stderr
