"""`edgeclip distill` parses, calls and prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgeclip.cli import run
from edgeclip.export.distill import api
from edgeclip.export.distill.report import Curve, DistillReport, Side
from edgeclip.export.distill.settings import DistillSettings, LatencyBudget
from edgeclip.export.distill.timing import Took
from edgeclip.models.training import train
from tests.training.tiny import tiny

SMALL = [
    "--data", "shapes:120", "--set", "validation_share=0.2", "--set", "batch_size=16", "--set", "device=cpu", "--set", "steps=4",
    "--set", "warmup_steps=1", "--set", "workers=0",
]  # fmt: skip
TOOK = Took(1.5, 2.5, 9)
SIDE = Side("teacher", "t", "PyTorch fp32", 32017, 128068, 2392, {"score": 0.5}, TOOK, TOOK)
REPORT = DistillReport(
    "o/bundle", "half", "Chosen for 8 ms: because.", ("t",), (SIDE, SIDE, replace(SIDE, role="student, bundle")), 9, 1, 0,
    Curve((), (), {}), (), 4, 4, {}, {}, {}, {}, "here", {}, None, {"weights": "MIT", "warnings": ["derived from [t]"]},
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a teacher."""
    root = tmp_path_factory.mktemp("teacher")
    return str(train(tiny(steps=4), root, progress=False).model)


def test_dry_run_prints_the_plan_and_keeps_nothing(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["distill", teacher, "--student", "new:half-width", *SMALL, "--views", "3", "--allow-weaker"]
    asked = ["--objectives", "feature_mse:2,relational:1", "-o", str(tmp_path / "s"), "--dry-run"]
    assert run([*arguments, *asked]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["recipe"]["objectives"] == [["feature_mse", 2.0], ["relational", 1.0]]
    assert told["recipe"]["steps"] == 4
    assert told["reinforced"]["views"] == 3
    assert told["parameters"]["student"] < told["parameters"]["teacher"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_asked_reaches_the_distillation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[list[str], object, Path, DistillSettings]] = []

    def called(
        teachers: list[str], student: object, output: Path, settings: DistillSettings, **how: object
    ) -> DistillReport:
        calls.append((list(teachers), student, output, settings))
        return REPORT

    monkeypatch.setattr(api, "distill", called)
    latency = [
        "--latency",
        "8 ms",
        "--device-report",
        "a.json",
        "--device-report",
        "b",
        "--percentile",
        "p50",
    ]
    options = ["--captions", "c.jsonl", "--text-bank", "t.txt", "--target", "portable", "--allow-larger"]
    assert run(["distill", "a", "b", *latency, *options, *SMALL, "-o", "o"]) == 0
    teachers, student, output, settings = calls[0]
    assert (teachers, output) == (["a", "b"], Path("o"))
    assert student == LatencyBudget(8.0, (Path("a.json"), Path("b")), "p50")
    assert (settings.captions, settings.recipe.text_bank) == ("c.jsonl", "t.txt")
    assert (settings.allow_larger, settings.allow_weaker) == (True, False)
    assert settings.export.targets == ("portable",)
    shown = capsys.readouterr()
    assert "half: Chosen for 8 ms: because." in shown.out
    assert "report.html" in shown.out
    assert "32,017" in shown.out
    assert "licence of the weights: MIT; derived from [t]" in shown.err
    assert run(["distill", "a", "--student", "half", *SMALL, "-o", "o", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "edgeclip.distill"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x"], "--student: expected one name, got none."),
        (["-o", "x", "--student", "half", "--student", "quarter"], "--student: expected one name, got half, quarter."),
        (["--student", "half"], "-o: expected the folder of the result"),
        (["-o", "x", "--latency", "8ms"], "--latency 8ms: expected --device-report"),
        (["-o", "x", "--latency", "8", "--device-report", "r"], "--latency '8': expected a duration with its unit"),
        (["-o", "x", "--latency", "8ms", "--device-report", "r", "--student", "half"], "--student half names one. Take one out."),
        (["-o", "x", "--device-report", "r", "--student", "half"], "--device-report: chooses a student by --latency"),
        (["-o", "x", "--student", "half", "--objectives", "feature_mze:1"], "no 'feature_mze'; did you mean feature_mse?"),
        (["-o", "x", "--student", "half", "--set", "stepz=1"], "no setting 'stepz'; did you mean steps?"),
        (["-o", "x", "--student", "half", "--recipe", "distil"], "no such recipe; did you mean distill?"),
        (["-o", "x", "--student", "half", "--target", "all", "--target", "tpu"], "tpu"),
        (["-o", "x", "--student", "half"], "teacher: no such source"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["distill", "teacher", *SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_candidates_are_written_for_the_device(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "candidates"
    assert run(["distill", teacher, "--candidates", str(folder), "--student", "hf:a/b"]) == 2
    assert "--candidates: hf:a/b is not made from the teacher" in capsys.readouterr().err
    written: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        from edgeclip.export.distill import budget

        patch.setattr(
            budget,
            "export_bundle",
            lambda source, output, **named: (output.mkdir(), written.append(source.name)),
        )
        assert (
            run(
                [
                    "distill",
                    teacher,
                    "--candidates",
                    str(folder),
                    "--student",
                    "half-width",
                    "--student",
                    "full",
                ]
            )
            == 0
        )
    assert written == ["half-width", "full"]
    assert f"edgeclip bench {folder / 'half-width'}" in capsys.readouterr().out
