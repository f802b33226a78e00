"""What the workstation's verbs say of a bundle that only detects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeclip.cli import cli
from edgeclip.errors import EngineError
from edgeclip.export.compress.api import NothingFits, compress_bundle
from tests.runtime.detectors import make_detector


def said(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, env={"COLUMNS": "160"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    return make_detector(
        tmp_path / "planted", heads=("embeddings", "prompts", "labels"), text=False, objectness=True
    ).root


def test_inspect_says_what_it_detects(planted: Path) -> None:
    found = said("inspect", str(planted))
    assert "of 64 regions, from a score of 0.1; boxes of one label overlap by 0.5 at most" in found
    assert "2 labels baked in" in found, "the number of regions is no number of labels"
    record = json.loads(said("inspect", str(planted), "--json"))
    assert record["detection"]["nms_iou"] == 0.5


def test_inspect_says_when_it_detects_in_another_size(tmp_path: Path) -> None:
    both = make_detector(tmp_path / "both", image=True).root
    found = said("inspect", str(both))
    assert "32 x 32 pixels, shortest_crop" in found
    assert "of 64 regions in 64 x 64 pixels" in found


def test_verify_without_golden_rows_looks_whether_it_is_sane(planted: Path) -> None:
    checks = {check["name"]: check for check in json.loads(said("verify", str(planted), "--json"))["checks"]}
    for head in ("", "-prompts", "-labels"):
        assert checks[f"detector-fp32{head}"]["passed"]
        assert checks[f"detector-fp32{head}"]["detail"] == "2 made-up inputs, finite and different"


def test_triton_serves_each_head_as_it_is(planted: Path, tmp_path: Path) -> None:
    models = {
        m["name"]: m
        for m in json.loads(said("triton", str(planted), "-o", str(tmp_path / "out"), "--cpu", "--json"))[
            "models"
        ]
    }
    assert set(models) == {"detector", "detector_prompts", "detector_labels"}
    assert models["detector_prompts"]["max_batch_size"] == 0, "requests have prompts of their own"
    assert models["detector"]["max_batch_size"] == models["detector_labels"]["max_batch_size"] == 32
    assert (tmp_path / "out/detector_labels/labels.txt").read_text().split() == ["red", "green"]
    config = (tmp_path / "out/detector_labels/config.pbtxt").read_text()
    assert config.count("labels.txt") == 1
    assert (tmp_path / "out/detector/1/model.onnx").read_bytes() == (
        planted / "graphs/detector-fp32.onnx"
    ).read_bytes()


def test_what_a_detector_cannot_be_made_into_is_one_line(planted: Path, tmp_path: Path) -> None:
    from edgeclip.bundle import open_bundle

    opened = open_bundle(planted)
    with pytest.raises(NothingFits, match=r"not written\. detector-fp32: int8: no layer was converted"):
        compress_bundle(opened, tmp_path / "small")
    with pytest.raises(EngineError, match="this bundle has no image tower; it can detect"):
        CliRunner().invoke(
            cli,
            ["codecs", str(planted), "-o", str(tmp_path / "c"), "--images", "examples/pictures"],
            catch_exceptions=False,
        )
