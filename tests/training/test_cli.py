"""`edgeclip train` parses, calls and prints."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeclip.cli import run
from tests.training.tiny import ROOT

SMALL = [
    "--set",
    "data=shapes:300",
    "--set",
    "batch_size=16",
    "--set",
    "device=cpu",
    "--set",
    "warmup_steps=1",
]


def test_trains_and_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["train", "clip_vit_tiny", "-o", str(tmp_path / "r"), *SMALL, "--set", "steps=3", "--json"]) == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert record["steps"] == 3
    assert Path(record["model"], "config.json").is_file()
    assert run(["train", "clip_vit_tiny", "-o", str(tmp_path / "r"), *SMALL, "--set", "steps=3"]) == 0
    assert "edgeclip export" in capsys.readouterr().out


def test_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "clip_vit_tiny", "-o", str(tmp_path / "r"), *SMALL, "--dry-run"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["recipe"]["data"] == "shapes:300"
    assert record["parameters"] > 100_000
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip_vit_tny"], "edgeclip: clip_vit_tny: no such recipe; did you mean clip_vit_tiny?"),
        (
            ["clip_vit_tiny", "--set", "stepz=1"],
            "edgeclip: --set stepz=1: no setting 'stepz'; did you mean steps?",
        ),
        (["finetune"], "edgeclip: init_from: not set."),
        (["clip_vit_tiny", "--set", "data="], "edgeclip: data: not set."),
        (
            ["clip_vit_tiny", "--set", "init_from=hf:a/b", "--dry-run"],
            "edgeclip: init_from: set to 'hf:a/b', but nothing",
        ),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *arguments, "-o", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_ctrl_c_leaves_a_checkpoint_and_exits_130(tmp_path: Path) -> None:
    output = tmp_path / "r"
    command = [
        sys.executable,
        "-m",
        "edgeclip",
        "train",
        "clip_vit_tiny",
        "-o",
        str(output),
        *SMALL,
        "--set",
        "steps=100000",
        "--set",
        "log_every=1",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() or '"loss"' not in (output / "metrics.jsonl").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped with a checkpoint" in errors
    assert (output / "checkpoints/latest").is_file()
