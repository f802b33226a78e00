"""`edgeclip triton`: what it writes and says; every wrong wish in one line, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclip.cli import run
from tests.cli.conftest import Edgeclip
from tests.export.triton_stand_in import Server
from tests.runtime.toy import make_bundle


def test_written_and_reported(toy: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    out, labels = tmp_path / "repository", tmp_path / "labels.txt"
    labels.write_text("# pets\na cat\na dog\n")
    made = edgeclip(
        "triton", toy, "-o", out, "--cpu", "--labels", f"@{labels}", "--delay", "1s", "--json"
    ).record
    assert made["path"] == str(out)
    models = {model["name"]: model for model in made["models"]}
    assert models["zero_shot"] == {
        "name": "zero_shot",
        "platform": "ensemble",
        "max_batch_size": 0,
        "inputs": {"pixels": "TYPE_FP32 [-1, 3, 32, 32]", "input_ids": "TYPE_INT32 [-1, -1]"},
        "outputs": {"logits": "TYPE_FP32 [-1, -1]", "scores": "TYPE_FP32 [-1, -1]"},
    }
    assert models["classifier"]["outputs"] == {"logits": "TYPE_FP32 [2]", "scores": "TYPE_FP32 [2]"}
    server = Server(out)
    assert server.models["image"].config.dynamic_batching.max_queue_delay_microseconds == 1_000_000
    assert {path.stat().st_mode & 0o044 for path in out.rglob("*")} == {0o044}, "the server is another user"
    said = edgeclip("triton", toy, "-o", out, "--overwrite", "--prefix", "b_")
    assert said.code == 0
    assert "b_zero_shot_prompts" in said.out
    assert said.err.splitlines()[-1].startswith(f"edgeclip: {out}: 5 models; ")
    assert not (out / "zero_shot").exists(), "the old repository is gone"


def test_a_pack_needs_no_text_tower(toy: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    pack, lean = tmp_path / "pets.labels", make_bundle(tmp_path / "lean", text=False).root
    edgeclip("labels", "make", "--label", "a cat", "--label", "a dog", "-b", toy, "-o", pack)
    assert edgeclip("triton", lean, "-o", tmp_path / "r", "--cpu", "--pack", pack).code == 0
    assert (tmp_path / "r/label_head/labels.txt").read_text() == "a cat\na dog\n"


def test_refusals_are_one_line(
    toy: Path, tmp_path: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    pack = tmp_path / "pets.labels"
    other = make_bundle(tmp_path / "other", model_id="2" * 64).root
    texts = make_bundle(tmp_path / "texts", image=False).root
    edgeclip("labels", "make", "--label", "a cat", "-b", other, "-o", pack)
    before = sorted(tmp_path.rglob("*"))
    for bundle, options, message in (
        (tmp_path / "no", [], f"{tmp_path / 'no'}: no such bundle."),
        (toy, ["--precision", "int8"], f"{toy}: no image tower in int8; it has fp32. Choose one, or name"),
        (toy, ["--variant", "x"], f"{toy}: no variant 'x'; it has image-fp32, text-fp32."),
        (
            toy,
            ["--delay", "2 ms"],
            "Invalid value for '--delay': '2 ms': expected a time like 2ms, 500us or 0.",
        ),
        (toy, ["--max-batch", 0], "Invalid value for '--max-batch': 0 is not in the range x>=1."),
        (toy, ["--cpu", "--gpu", 1], "--cpu and --gpu exclude each other; drop one of them."),
        (toy, ["--prefix", "a/b"], "prefix: expected letters, digits, '_', '-' and '.', got 'a/b'."),
        (toy, ["--cuda-graphs"], "CUDA graphs: only the backend tensorrt captures them."),
        (
            toy,
            ["--cpu", "--accelerator", "tensorrt"],
            "accelerator tensorrt: only the backend onnxruntime on a GPU",
        ),
        (toy, ["--cpu", "--backend", "tensorrt"], "backend tensorrt: runs on a GPU only. Drop --cpu,"),
        (toy, ["--backend", "tensorrt"], f"{tmp_path / 'cache'}"),
        (
            toy,
            ["--pack", pack],
            "this label pack was made by model 222222222222..., the bundle is 111111111111",
        ),
        (toy, ["--pack", pack, "--label", "a"], "--pack brings its own labels and templates; drop"),
        (toy, ["--template", "a {}"], "--template says how to write labels; pass --labels as well."),
        (toy, ["--labels", "a,a"], "labels[1]: 'a' is also labels[0]"),
        (toy, ["-o", toy], f"{toy}: already exists. Choose another place, or pass --overwrite"),
        (toy, ["-o", toy, "--overwrite"], f"{toy}: lies in the bundle, which never changes."),
        (toy, ["-o", toy / "graphs/r"], f"{toy / 'graphs/r'}: lies in the bundle, which never changes."),
        (
            texts,
            ["--label", "a"],
            f"{texts}: has no image tower that gives embeddings to compare with labels.",
        ),
    ):
        said = edgeclip("triton", bundle, "-o", tmp_path / "out", *options)
        assert said.code == 2, options
        assert said.line.startswith(f"edgeclip: {message}"), said.line
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


def test_a_missing_package_is_named(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        patch.delitem(__import__("sys").modules, "onnx_ir", raising=False)
        assert run(["triton", str(toy), "-o", str(tmp_path / "r")]) == 2
    assert (
        "a Triton repository needs onnx_ir, which is not installed. Run: pip install"
        in capsys.readouterr().err
    )
