"""The published JSON Schemas of what `edgeclip bench` writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from edgeclip.bench.reading import to_json
from edgeclip.bench.schema import PUBLISHED, bench_schema
from tests.bench.reports import make_bare_report, make_comparison, make_matrix, make_report, make_scenario

DOCS = Path(__file__).parents[2] / "docs"
REPORT, MATRIX, COMPARISON = PUBLISHED
SMALL = (make_scenario(count=40),)
TEXTS = {REPORT: to_json(make_report(scenarios=SMALL)), MATRIX: to_json(make_matrix()), COMPARISON: to_json(make_comparison())}  # fmt: skip


def published(file: str) -> Any:
    return json.loads((DOCS / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", PUBLISHED)
def test_published_schema_is_the_one_that_the_code_makes(file: str) -> None:
    Draft202012Validator.check_schema(published(file))
    assert published(file) == bench_schema(file), "run: python -m edgeclip.bench.schema docs"


@pytest.mark.parametrize("file", PUBLISHED)
def test_what_is_written_passes(file: str) -> None:
    validator = Draft202012Validator(published(file))
    validator.validate(json.loads(TEXTS[file]))
    validator.validate({**json.loads(TEXTS[file]), "version": [1, 9], "invented_later": 1})
    if file == REPORT:
        validator.validate(json.loads(to_json(make_bare_report())))
        validator.validate(json.loads(to_json(make_report(gpu=True, throttled=True, scenarios=SMALL))))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (REPORT, lambda data: data.pop("device")),
        (REPORT, lambda data: data.update(version=[2, 0])),
        (REPORT, lambda data: data.update(format="edgeclip.bundle")),
        (REPORT, lambda data: data["scenarios"][0].update(scenario="burst")),
        (REPORT, lambda data: data["scenarios"][0]["latency"]["p50"].pop("ms")),
        (REPORT, lambda data: data["scenarios"][0]["latencies"]["ms"].append("1")),
        (REPORT, lambda data: data["state"].update(throttled="no")),
        (REPORT, lambda data: data["memory"].update(rss_bytes=1.5)),
        (REPORT, lambda data: data["not_measured"].update(power=None)),
        (REPORT, lambda data: data["cold"][0].update(kind="warm")),
        (MATRIX, lambda data: data["cells"][0].update(state="skipped")),
        (MATRIX, lambda data: data["cells"][0].pop("batch")),
        (COMPARISON, lambda data: data["changes"][0].update(verdict="good")),
        (COMPARISON, lambda data: data.update(failed=1)),
    ],
)
def test_damaged_files_fail(file: str, damage: Callable[[Any], object]) -> None:
    data = json.loads(TEXTS[file])
    damage(data)
    with pytest.raises(ValidationError):
        Draft202012Validator(published(file)).validate(data)
