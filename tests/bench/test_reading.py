"""Reports as files: written, opened again, and refused when they are damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.bench.cells import Matrix
from edgeclip.bench.comparison import Comparison
from edgeclip.bench.reading import (
    MOST_BYTES,
    open_any,
    open_comparison,
    open_matrix,
    open_report,
    parse,
    to_json,
)
from edgeclip.bench.report import Report
from edgeclip.errors import InputError
from tests.bench.reports import make_bare_report, make_comparison, make_matrix, make_report

TEXT = to_json(make_report(gpu=True, throttled=True))


@pytest.mark.parametrize(
    ("value", "opened"),
    [
        (make_report(gpu=True), open_report),
        (make_bare_report(), open_report),
        (make_matrix(), open_matrix),
        (make_comparison(), open_comparison),
    ],
)
def test_what_is_written_is_read_again(value: Any, opened: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(to_json(value), encoding="utf-8")
    found = opened(path)
    assert found == open_any(path)
    assert to_json(found) == to_json(value)
    flat, back = [np.array(list(_numbers(asdict(v)))) for v in (value, found)]
    np.testing.assert_allclose(back, flat, rtol=5e-9)  # nine digits


def _numbers(data: Any) -> Any:
    if isinstance(data, (dict, list, tuple)):
        for item in data.values() if isinstance(data, dict) else data:
            yield from _numbers(item)
    elif type(data) in (int, float):
        yield data


def test_numbers_of_nanoseconds_come_back_as_they_were() -> None:
    """Values with nine digits or fewer are equal, not only near: a comparison sees the very latencies."""
    report = make_report()
    found = parse(Report, to_json(report), "x")
    for a, b in zip(report.scenarios, found.scenarios, strict=True):
        assert a.latencies == b.latencies
        assert a.pulse == b.pulse
    assert found.settings == report.settings
    assert found.device == report.device


def test_file_is_readable() -> None:
    """A list of numbers stands on one line, an object's fields each on their own, in the order of the dataclass."""
    lines = TEXT.splitlines()
    assert lines[1:3] == [' "format": "edgeclip.bench",', ' "version": [1, 0],']
    latencies = [line for line in lines if line.lstrip().startswith('"ms": [')]
    assert len(latencies) == 4
    assert all(line.count(",") > 80 for line in latencies)
    assert sum(len(line) > 300 for line in lines) < 40  # the bulk: 4 lists and 3 of pulses, and the series
    assert json.loads(TEXT)["device"]["cpu_flags"] == ["avx2", "avx512f", "avx512_vnni"]


def test_what_is_nested_too_deep_to_walk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 and newer parse some thousand levels more than Python's own functions can walk."""
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    monkeypatch.setattr(
        json, "loads", lambda text: {"format": "edgeclip.bench", "version": [1, 0], "x": deep}
    )
    with pytest.raises(InputError, match="x: nested too deep"):
        parse(Report, "", "x")


def test_hostile_names_are_written() -> None:
    name = 'a"b\\c\n\x1b[31m\udcff</script>é'
    report = make_report()
    report = replace(report, subject=replace(report.subject, name=name), not_measured={name: name})
    text = to_json(report)
    text.encode()
    found = parse(Report, text, "x")
    assert (found.subject.name, found.not_measured) == (name, {name: name})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("device"), "a field is missing"),
        (lambda d: d.update(format="edgeclip.bundle"), "This is not a file of"),
        (lambda d: d.update(format=["x"]), "This is not a file of"),
        (lambda d: d.update(format="edgeclip.bench.matrix"), "This is a matrix"),
        (lambda d: d.update(version=[2, 0]), r"format 2\.0, this edgeclip reads 1\.x"),
        (lambda d: d.update(version="1"), r"expected \[major, minor\], got '1'"),
        (lambda d: d.update(invented=1), "unknown field 'invented'"),
        (lambda d: d.update(seconds="4"), "seconds: expected float, got '4'"),
        (lambda d: d.update(seconds=math.nan), "seconds: expected a finite number, got nan"),
        (lambda d: d.update(seconds=10**400), "seconds: expected a finite number, got 1000"),
        (lambda d: d.update(seconds=1e300), r"seconds: expected a finite number, got 1e.300"),
        (lambda d: d["scenarios"][0]["latencies"]["ms"].append(math.inf), r"ms\[600\]: expected a finite"),
        (lambda d: d["scenarios"][0]["latencies"]["ms"].append(1.0), "lists of equal length, got 600, 601"),
        (lambda d: d["scenarios"][1]["pulse"]["us"].pop(), r"scenarios\[1\]: pulse: expected lists of equal"),
        (lambda d: d["scenarios"][0]["latencies"].update(starts=[5, 2]), "expected rising positions"),
        (lambda d: d["scenarios"][0]["latencies"].update(starts=[0, 600]), r"rising positions from 0 in a list of 600, got"),
        (lambda d: d["scenarios"][0]["pulse"].update(starts=[0], at_ms=[], us=[]), r"pulse: starts: .* in a list of 0"),
        (lambda d: d["scenarios"][0]["latencies"].update(starts=[0, 1, 2, 3, 4, 5, 6, 7]), "as many launches of pulse"),
        (lambda d: d["scenarios"][0]["latency"]["p50"].update(ms=0.0), "above 0"),
        (lambda d: d["scenarios"][0]["latencies"]["ms"].__setitem__(3, -1.0), "above 0"),
        (lambda d: d["state"]["series"][0]["values"].pop(), "series 'cpu clock': expected lists of equal"),
        (lambda d: d["scenarios"][2].update(scenario="burst"), r"scenarios\[2\]: scenario: expected one of single"),
        (lambda d: d["inputs"].update(count=True), "count: expected int, got True"),
        (lambda d: d["roofline"][0]["by_operator"].update(Add="x"), "by_operator"),
    ],
)  # fmt: skip
def test_damaged_reports_are_refused(damage: Callable[[Any], object], message: str) -> None:
    data = json.loads(TEXT)
    damage(data)
    with pytest.raises(InputError, match=message) as caught:
        parse(Report, json.dumps(data), "a.json")
    assert str(caught.value).startswith("a.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "expected a JSON object"),
        (b"\xff\xfe", "JSON in UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"format": "edgeclip.bench", "version": [1, 0], "seconds": 1' + b"0" * 5000 + b"}", "not JSON"),
    ],
)
def test_other_files_are_refused(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    for opened in (open_report, open_any):
        with pytest.raises(InputError, match=message):
            opened(path)


def test_files_too_large_or_missing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as stream:
        stream.truncate(MOST_BYTES + 1)
    with pytest.raises(InputError, match="at most 64 MB"):
        open_report(path)
    with pytest.raises(InputError, match="No such file"):
        open_report(tmp_path / "b.json")
    with pytest.raises(InputError, match="Is a directory"):
        open_report(tmp_path)


def test_a_newer_minor_version_is_read() -> None:
    data = {**json.loads(TEXT), "version": [1, 7], "invented_later": {"x": 1}}
    assert to_json(parse(Report, json.dumps(data), "a.json")) == TEXT


def test_numbers_that_are_none_are_not_written() -> None:
    with pytest.raises(InputError, match="harness_us: expected a finite number, got nan"):
        to_json(make_report(harness_us=math.nan))


@pytest.mark.parametrize(("cls", "value"), [(Matrix, make_comparison()), (Comparison, make_matrix())])
def test_one_kind_is_not_taken_for_another(cls: Any, value: Any) -> None:
    with pytest.raises(InputError, match=r"This is a (comparison|matrix)"):
        parse(cls, to_json(value), "a.json")
