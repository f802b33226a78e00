"""A student is chosen by what a device measured: of this teacher, on that device, and never by a guess."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeclip.bench.reading import to_json
from edgeclip.bench.report import Report
from edgeclip.bundle import open_bundle
from edgeclip.errors import InputError
from edgeclip.export.api import ExportSettings
from edgeclip.export.distill.budget import (
    Choice,
    candidate,
    choose,
    computing_parameters,
    model_id_of,
    parse_ms,
    write_candidates,
)
from edgeclip.models.source import Source
from edgeclip.models.students import student
from tests.bench.reports import make_report, make_scenario
from tests.export.sources import clip_source
from tests.models.test_inherit import samples


@pytest.fixture(scope="module")
def teacher() -> Source:
    return clip_source()


def write_report(path: Path, teacher: Source, name: str, p50: float, **changes: Any) -> Path:
    """A report as `edgeclip bench` on a candidate writes one."""
    base: Report = make_report()
    subject = replace(base.subject, name=name, model_id=model_id_of(candidate(teacher, name)))
    made = replace(base, subject=subject, scenarios=(make_scenario(p50=p50),))
    path.write_text(to_json(replace(made, **changes)))
    return path


@pytest.mark.parametrize(
    ("text", "ms"),
    [("8ms", 8.0), ("8 ms", 8.0), ("0.008s", 8.0), (" 8000us ", 8.0), (".5S", 500.0), ("12.5MS", 12.5)],
)
def test_durations_have_units(text: str, ms: float) -> None:
    assert parse_ms(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["8", "ms", "0ms", "-8ms", "8 m", "8ms or so", "1e3ms", "nan s", ""])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(
        InputError, match=r"--latency .*: expected a duration with its unit, e.g. 8ms or 0.008s"
    ):
        parse_ms(text)


def test_the_largest_that_fits(teacher: Source, tmp_path: Path) -> None:
    """By parameters, not by time: the slowest of those that fit need not be the largest."""
    for name, p50 in (("full", 20.0), ("half", 5.0), ("half-depth", 4.0), ("quarter", 6.0)):
        write_report(tmp_path / f"{name}.json", teacher, name, p50)
    sizes = {name: computing_parameters(student(teacher, name)) for name in ("half", "half-depth", "quarter")}
    assert max(sizes, key=lambda name: sizes[name]) == "half-depth"
    name, measured = choose(teacher, 8.0, [tmp_path])
    assert name == "half-depth"
    assert measured.parameters == sizes[name]
    assert measured.ms == pytest.approx(4.0, rel=0.1)
    assert measured.report == tmp_path / "half-depth.json"
    assert choose(teacher, 100.0, [tmp_path]).name == "full"
    assert choose(teacher, 8.0, [tmp_path / "half.json", tmp_path / "quarter.json"]).name == "half"


def test_the_table_of_tokens_is_no_work(teacher: Source) -> None:
    every = sum(parameter.numel() for parameter in teacher.model.parameters())
    assert computing_parameters(teacher) == every - 259 * 32


def test_the_percentile_that_is_asked_for(teacher: Source, tmp_path: Path) -> None:
    report = write_report(tmp_path / "half.json", teacher, "half", 5.0)
    found = [choose(teacher, 30.0, [report], percentile=p).measured.ms for p in ("p50", "p90", "p99")]  # type: ignore[arg-type]
    assert found == sorted(found)
    assert found[0] < found[2]
    with pytest.raises(InputError, match="percentile 'p95': expected one of p50, p90, p99"):
        choose(teacher, 30.0, [report], percentile="p95")  # type: ignore[arg-type]


def test_of_one_student_the_fastest_report_counts(teacher: Source, tmp_path: Path) -> None:
    """A compressed candidate has the same model_id: the report says which precision ran."""
    write_report(tmp_path / "a.json", teacher, "half", 5.0)
    int8 = make_report().subject
    towers = tuple(replace(tower, precision="int8") for tower in int8.towers)
    subject = replace(int8, name="half", model_id=model_id_of(candidate(teacher, "half")), towers=towers)
    write_report(tmp_path / "b.json", teacher, "half", 3.0, subject=subject)
    chosen = choose(teacher, 4.0, [tmp_path])
    assert set(chosen.measured.precisions) == {"int8"}


def test_doubts_travel_along(teacher: Source, tmp_path: Path) -> None:
    short = replace(make_scenario(p50=5.0), enough=False)
    state = replace(make_report().state, flags=("the CPU's clock fell by 20 % during the run",))
    write_report(tmp_path / "half.json", teacher, "half", 5.0, scenarios=(short,), state=state)
    notes = choose(teacher, 8.0, [tmp_path]).measured.notes
    assert notes == (
        "the CPU's clock fell by 20 % during the run",
        "the report's evidence is short: measure longer",
    )


def test_samples_and_weights_change_no_candidate(teacher: Source, tmp_path: Path) -> None:
    """Measured without pairs, chosen with some: a student's latency is that of its sizes."""
    measured = "inherit:image.width=32,importance=activations"
    for name in ("half", measured):
        given = samples() if name == measured else None
        subject = replace(
            make_report().subject, name=name, model_id=model_id_of(candidate(teacher, name, given))
        )
        report = write_report(tmp_path / "report.json", teacher, "half", 5.0, subject=subject)
        assert choose(teacher, 30.0, [report], samples=samples(9, seed=8)).name == name
    with pytest.raises(InputError, match="cannot have: importance activations: expected pairs to measure on"):
        choose(teacher, 30.0, [report])
    trained = replace(make_report().subject, name="half", model_id=model_id_of(student(teacher, "half")))
    report = write_report(tmp_path / "report.json", teacher, "half", 5.0, subject=trained)
    with pytest.raises(InputError, match="no candidate made of"):
        choose(teacher, 30.0, [report])


def test_none_that_fits_names_the_fastest(teacher: Source, tmp_path: Path) -> None:
    write_report(tmp_path / "half.json", teacher, "half", 5.0)
    write_report(tmp_path / "quarter.json", teacher, "quarter", 3.0)
    with pytest.raises(
        InputError,
        match=r"--latency 2ms: no student is that fast. The fastest measured is quarter with p90 3\.\d+ ms",
    ):
        choose(teacher, 2.0, [tmp_path])


def test_reports_of_something_else_are_refused(teacher: Source, tmp_path: Path) -> None:
    other = replace(teacher, digest="1" * 64, spec="other")
    report = write_report(tmp_path / "half.json", other, "half", 5.0)
    assert choose(other, 8.0, [report]).name == "half"
    with pytest.raises(
        InputError, match=r"half.json: measures half \(model .*no candidate made of made-up. Run"
    ):
        choose(teacher, 8.0, [report])
    text = report.read_text().replace('"half"', '"hf:somebody/model"')
    report.write_text(text)
    with pytest.raises(
        InputError, match=r"measures hf:somebody/model .*no candidate"
    ):  # and nothing is downloaded
        choose(teacher, 8.0, [report])
    report.write_text(text.replace("hf:somebody/model", "39m-16"))
    with pytest.raises(
        InputError, match=r"measures 39m-16, which made-up cannot have: .*patches of 16 pixels"
    ):
        choose(teacher, 8.0, [report])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"settings": replace(make_report().settings, task="embed-text")},
            "reports of one task, got classify and embed-text",
        ),
        ({"device": replace(make_report().device, name="other")}, "reports of one device, got"),
        ({"subject": 7}, "reports of one number of threads, got"),
    ],
)
def test_reports_that_cannot_be_compared(changes: Any, message: str, teacher: Source, tmp_path: Path) -> None:
    write_report(tmp_path / "half.json", teacher, "half", 5.0)
    if "subject" in changes:
        base = replace(make_report().subject, threads=7, name="quarter")
        changes = {"subject": replace(base, model_id=model_id_of(candidate(teacher, "quarter")))}
    write_report(tmp_path / "quarter.json", teacher, "quarter", 3.0, **changes)
    with pytest.raises(InputError, match=message):
        choose(teacher, 8.0, [tmp_path])


def test_nothing_to_choose_by(teacher: Source, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--device-report: no report in .*, then `edgeclip bench`"):
        choose(teacher, 8.0, [tmp_path])
    with pytest.raises(InputError, match="expected a duration above 0 ms, got 0"):
        choose(teacher, 0.0, [tmp_path])
    report = write_report(
        tmp_path / "half.json", teacher, "half", 5.0, scenarios=(make_scenario("offline", samples=8),)
    )
    with pytest.raises(InputError, match="has no single stream"):
        choose(teacher, 8.0, [report])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match=r"--device-report: .*x.json: expected"):
        choose(teacher, 8.0, [tmp_path])


def test_candidates_are_bundles_that_reports_match(teacher: Source, tmp_path: Path) -> None:
    """Of a student whose heads are narrower than its stream; the bundle's own proof is part of writing it."""
    name = "inherit:image.layers=1,image.heads=2,text.layers=1,text.width=24"
    settings = ExportSettings(targets=("portable",))
    (folder,) = write_candidates(teacher, [name], tmp_path / "candidates", settings=settings)
    assert (
        folder == tmp_path / "candidates" / "inherit-image.layers-1-image.heads-2-text.layers-1-text.width-24"
    )
    manifest = open_bundle(folder).manifest
    assert manifest.name == name
    assert manifest.model_id == model_id_of(candidate(teacher, name))
    subject = replace(make_report().subject, name=manifest.name, model_id=manifest.model_id)
    report = write_report(tmp_path / "report.json", teacher, "half", 5.0, subject=subject)
    assert isinstance(chosen := choose(teacher, 8.0, [report]), Choice)
    assert chosen.name == name


def test_candidates_that_cannot_be(teacher: Source, tmp_path: Path) -> None:
    for names, message in (
        ([], "expected different students, got none"),
        (["half", "half"], "expected different students, got half, half"),
        (["hf:a/b"], "hf:a/b is not made from the teacher"),
        (["half", "inherit:image.layers=9"], "image.layers: expected 1 to 2"),
    ):
        with pytest.raises(InputError, match=message):
            write_candidates(teacher, names, tmp_path / "candidates")
        assert not (tmp_path / "candidates").exists()
