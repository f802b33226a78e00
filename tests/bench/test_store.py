"""Reports that a machine keeps, and those that travel inside a bundle."""

from __future__ import annotations

import logging
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeclip.bench import store
from edgeclip.bench.reading import open_report, to_json
from edgeclip.bench.report import Report, TowerUsed
from edgeclip.bench.store import attach, attached, keep, kept
from edgeclip.bundle import Bundle, check_hashes, open_bundle, pack_zip
from edgeclip.bundle.manifest import FORMAT_VERSION
from edgeclip.errors import CheckFailed, InputError
from edgeclip.runtime.verify import verify
from tests.bench.reports import make_bare_report
from tests.runtime.toy import make_bundle


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The toy bundle, and a cache of its own."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    return make_bundle(tmp_path / "toy")


def report_of(bundle: Bundle, hour: int = 4, **changes: Any) -> Report:
    """A report that measured this bundle's image tower; without single latencies, which take time to read."""
    graph = bundle.manifest.files["graphs/image-fp32.onnx"].sha256
    tower = TowerUsed("image", "onnxruntime-cpu", "CPUExecutionProvider", "image-fp32", "fp32", graph)
    made = make_bare_report(created=f"2026-11-26T{hour:02}:10:00+00:00", **changes)
    subject = replace(made.subject, model_id=bundle.manifest.model_id, digest=bundle.digest, towers=(tower,))
    # as it is once it was written: numbers of nine digits
    (bundle.root.parent / "report.json").write_text(to_json(replace(made, subject=subject)))
    return open_report(bundle.root.parent / "report.json")


def test_local_reports_are_listed_newest_first(toy: Bundle) -> None:
    assert kept(toy) == []
    reports = [report_of(toy, hour) for hour in (4, 6, 5)]
    for report in reports:
        path = keep(toy, report)
        assert path.parent == toy.cache / "reports"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(toy.cache.stat().st_mode) == 0o700
    assert [report for _, report in kept(toy)] == [reports[1], reports[2], reports[0]]
    assert [report for _, report in kept(toy, 1)] == [reports[1]]
    keep(toy, reports[0])  # the same once more is the same file
    assert len(kept(toy)) == 3
    assert open_bundle(toy.root) == toy  # nothing in the bundle changed


def test_only_so_many_are_kept(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_LOCAL", 2)
    for hour in (7, 4, 6, 5):
        keep(toy, report_of(toy, hour))
    assert [report.created[11:13] for _, report in kept(toy)] == ["07", "06"]


def test_damaged_ones_are_passed_over_and_told(toy: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    path = keep(toy, report_of(toy))
    path.with_name("20270101T000000Z-0.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert len(kept(toy)) == 1
    assert "20270101T000000Z-0.json: not JSON" in caplog.text


def test_a_cache_that_cannot_be_written(toy: Bundle) -> None:
    toy.cache.parent.mkdir()
    toy.cache.write_text("a file")
    with pytest.raises(InputError, match=r"reports: cannot be written .* pass --no-save"):
        keep(toy, report_of(toy))


@pytest.mark.parametrize("created", ["yesterday", "../../x", ""])
def test_a_time_that_is_none_names_no_file(toy: Bundle, created: str) -> None:
    with pytest.raises(InputError, match="created: expected a time"):
        keep(toy, replace(report_of(toy), created=created))


def test_a_report_inside_a_bundle(toy: Bundle, tmp_path: Path) -> None:
    report = report_of(toy)
    made = attach(toy, report, tmp_path / "with")
    assert made.root == tmp_path / "with"
    assert (made.manifest.model_id, made.manifest.variants) == (toy.manifest.model_id, toy.manifest.variants)
    assert made.digest != toy.digest
    ((path, found),) = attached(made)
    assert found == report
    assert [path.relative_to(made.root).as_posix()] == list(made.manifest.reports)
    assert set(made.manifest.files) - set(toy.manifest.files) == set(made.manifest.reports)
    assert {name: made.manifest.files[name] for name in toy.manifest.files} == toy.manifest.files
    verify(made).require()
    second = attach(
        made, report_of(toy, 5), tmp_path / "two"
    )  # of the same graphs, though not of this bundle
    assert [report.created[11:13] for _, report in attached(second)] == ["05", "04"]
    pack_zip(second, tmp_path / "two.zip")
    check_hashes(opened := open_bundle(tmp_path / "two.zip"))
    assert [found for _, found in attached(opened)] == [found for _, found in attached(second)]


def test_reports_of_something_else_are_refused(toy: Bundle, tmp_path: Path) -> None:
    report, output = report_of(toy), tmp_path / "with"
    other = replace(report, subject=replace(report.subject, model_id="2" * 64))
    with pytest.raises(InputError, match=r"report is of another model .* expected 1111111111111111"):
        attach(toy, other, output)
    tower = replace(report.subject.towers[0], graph_sha256="3" * 64)
    with pytest.raises(InputError, match=r"of the graph image-fp32 \(333333333333\.\.\.\), which this"):
        attach(toy, replace(report, subject=replace(report.subject, towers=(tower,))), output)
    with pytest.raises(InputError, match="is the bundle itself"):
        attach(toy, report, toy.root, overwrite=True)
    with pytest.raises(InputError, match="holds the bundle itself"):
        attach(toy, report, tmp_path, overwrite=True)  # it would go, and everything beside it
    assert toy.root.is_dir()
    made = attach(toy, report, output)
    with pytest.raises(InputError, match="already exists"):
        attach(toy, report, output)
    with pytest.raises(InputError, match="holds this report already"):
        attach(made, report, tmp_path / "again")
    assert attach(toy, report, output, overwrite=True) == made


@pytest.mark.parametrize(
    "created", ["yesterday", "../../x", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]
)
def test_a_time_that_names_no_file_is_refused(toy: Bundle, tmp_path: Path, created: str) -> None:
    with pytest.raises(InputError, match="report: created: expected a time"):
        attach(toy, replace(report_of(toy), created=created), tmp_path / "with")


def test_damage_is_not_sealed_as_if_it_were_whole(toy: Bundle, tmp_path: Path) -> None:
    graph = toy.path("graphs/image-fp32.onnx")
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckFailed, match=r"image-fp32\.onnx: is not what the manifest says"):
        attach(toy, report_of(toy), tmp_path / "with")
    assert not (tmp_path / "with").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".with")]


def test_derived_bundles_keep_reports_of_graphs_that_stay(toy: Bundle, tmp_path: Path) -> None:
    derive = pytest.importorskip("edgeclip.export.derive").derive_bundle
    made = attach(toy, report_of(toy), tmp_path / "with")
    same = derive(made, tmp_path / "same", [])
    assert same.manifest.reports == made.manifest.reports
    assert [found for _, found in attached(same)] == [found for _, found in attached(made)]
    texts = derive(made, tmp_path / "texts", [], keep=lambda variant: variant.tower == "text")
    assert texts.manifest.reports == ()
    assert not (texts.root / "reports").exists()


def test_bundles_of_before_open_as_they_did(toy: Bundle) -> None:
    """1.1 has no `reports`; and what reads 1.1 passes the new field over."""
    text = (toy.root / "bundle.json").read_text()
    body = text.rpartition(',\n "digest"')[0].replace(
        f'"version": [\n  1,\n  {FORMAT_VERSION[1]}\n ]', '"version": [\n  1,\n  1\n ]'
    )
    assert body != text.rpartition(',\n "digest"')[0]
    old = body.replace(' "reports": [],\n', "")
    assert old != body
    import hashlib

    digest = hashlib.sha256(old.encode()).hexdigest()
    (toy.root / "bundle.json").write_text(f'{old},\n "digest": "{digest}"\n}}\n')
    opened = open_bundle(toy.root)
    assert opened.manifest == toy.manifest
    assert attached(opened) == []
