"""Export and compress in one: what is left where it ends well, and where it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeclip.bundle import Bundle, open_bundle
from edgeclip.cli import run
from edgeclip.errors import InputError
from edgeclip.export.api import ExportReport, ExportSettings
from edgeclip.export.compress import together
from edgeclip.export.compress.api import CompressSettings, NothingFits
from edgeclip.export.compress.budget import parse_budgets
from edgeclip.export.compress.together import export_compressed
from edgeclip.models.sources import save_source
from tests.export.sources import nano_source


def test_the_command_line(
    classes: Path, tmp_path: Path, toy: Any, speed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source = nano_source()
    save_source(
        tmp_path / "source", model=source.model, preprocessing=source.preprocessing, text=source.text,
        tokenizer_json=source.tokenizer_json, licence=source.licence,
    )  # fmt: skip
    line = ["export", str(tmp_path / "source"), "-o", str(tmp_path / "out"), "--images", str(classes)]
    assert run([*line, "--precision", "int9"]) == 2
    assert (
        "--precision int9: unknown. Choose from fp16, bf16, int8, int8-dynamic, fp8, int4."
        in capsys.readouterr().err
    )
    assert run([*line, "--precision", "int8", "--budget", "warmth=3"]) == 2
    assert "--budget warmth=3: expected FIGURE=NUMBER" in capsys.readouterr().err
    assert run([*line, "--precision", "int8", "--budget", "distance=0.5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    manifest = open_bundle(tmp_path / "out").manifest
    assert [v.id for v in manifest.variants if v.tower == "image"] == ["image-int8", "image-fp32"]
    assert report["path"] == report["compress"]["path"] == str(tmp_path / "out")
    assert report["compress"]["budgets"] == ["distance=0.5"]
    assert {variant["variant"] for variant in report["variants"]} == {"image-fp32", "text-fp32"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_what_is_refused_leaves_nothing(
    tiny: Bundle,
    classes: Path,
    tmp_path: Path,
    toy: Any,
    speed: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Path] = []

    def exported(source: Any, output: Path, **_: Any) -> ExportReport:
        asked.append(output)
        return ExportReport(tiny, (), {}, {}, ())

    monkeypatch.setattr(together, "export_bundle", exported)
    compress = CompressSettings(budgets=parse_budgets(["distance=0.5"]), images=classes, methods=("int8",))
    speed(0.5)
    with pytest.raises(NothingFits, match="not faster than image-fp32"):
        export_compressed(nano_source(), tmp_path / "out", settings=ExportSettings(), compress=compress)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: already exists"):
        export_compressed(nano_source(), tmp_path / "out", settings=ExportSettings(), compress=compress)
    assert len(asked) == 1, "it was exported before it was refused"
