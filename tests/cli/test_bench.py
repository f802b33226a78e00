"""`edgeclip bench`: options become settings, results go where they were asked for, exit codes. Measuring itself is a stand-in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeclip.bench.comparison import Comparison
from edgeclip.bench.reading import open_report, to_json
from edgeclip.bench.report import Report, TowerUsed
from edgeclip.bench.settings import PARTS, SCENARIOS, Settings, preset
from edgeclip.bundle import open_bundle
from edgeclip.errors import EngineError
from tests.bench.reports import make_bare_report, make_change, make_comparison, make_matrix
from tests.cli.conftest import Edgeclip


def report_of(bundle: Path) -> Report:
    """A report as it was read from a file."""
    opened = open_bundle(bundle)
    graph = opened.manifest.files["graphs/image-fp32.onnx"].sha256
    tower = TowerUsed("image", "onnxruntime-cpu", "CPUExecutionProvider", "image-fp32", "fp32", graph)
    made = make_bare_report()
    subject = replace(made.subject, model_id=opened.manifest.model_id, digest=opened.digest, towers=(tower,))
    path = bundle.parent / "made.json"
    path.write_text(to_json(replace(made, subject=subject)))
    return open_report(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def asked(toy: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Settings, Path | None]]:
    """What `measure` was asked for; it answers at once."""
    calls: list[tuple[str, Settings, Path | None]] = []

    def measure(bundle: str, settings: Settings, images: Path | None, tell: Callable[..., None]) -> Report:
        calls.append((bundle, settings, images))
        tell("single-stream 1/3", 65.2)
        tell("cold", 0.4)
        return report_of(toy)

    monkeypatch.setattr("edgeclip.bench.measure.measure", measure)
    return calls


def test_a_run_prints_its_report_and_keeps_it(asked: list[Any], toy: Path, edgeclip: Edgeclip) -> None:
    said = edgeclip("bench", toy)
    assert said.code == 0
    assert "single-stream" in said.out
    assert said.err.splitlines()[:2] == ["edgeclip: single-stream 1/3, about 65 s left", "edgeclip: cold"]
    assert asked == [(str(toy), preset("standard", task="auto"), None)]
    (kept,) = open_bundle(toy).cache.glob("reports/*.json")
    assert said.err.splitlines()[2] == f"edgeclip: kept as {kept}"
    assert open_report(kept) == report_of(toy)


def test_results_go_where_they_are_asked_for(
    asked: list[Any], toy: Path, tmp_path: Path, edgeclip: Edgeclip
) -> None:
    files = [tmp_path / "new" / name for name in ("r.json", "r.html", "r.md")]
    said = edgeclip(
        "bench", toy, "-o", files[0], "--html", files[1], "--markdown", files[2], "--no-save", "--json"
    )
    assert said.code == 0
    assert said.out == files[0].read_text() == to_json(report_of(toy))
    assert files[1].read_text().startswith("<!doctype html>") or files[1].read_text().startswith(
        "<!DOCTYPE html>"
    )
    assert "| " in files[2].read_text()
    assert not open_bundle(toy).cache.exists()


def test_a_cache_that_cannot_be_written_costs_nobody_the_figures(
    asked: list[Any], toy: Path, cache: Path, edgeclip: Edgeclip
) -> None:
    cache.write_text("a file")
    said = edgeclip("bench", toy)
    assert said.code == 0
    assert "single-stream" in said.out
    assert "edgeclip: not kept: " in said.err


def test_options_become_settings(asked: list[Any], toy: Path, photos: Path, edgeclip: Edgeclip) -> None:
    def settings(*options: object) -> Settings:
        assert edgeclip("bench", toy, *options).code == 0
        found: Settings = asked[-1][1]
        return found

    assert settings("--quick") == preset("quick", task="auto")
    assert settings("--full") == preset("full", task="auto")
    assert settings("--scenario", "server", "--rate", 5, "--bound", 20, "--batch", 4) == preset(
        "standard",
        task="auto",
        scenarios=("server",),
        server_rate_per_s=5,
        server_bound_ms=20,
        server_batch=4,
        offline_batch=4,
    )
    assert settings("--scenario", "all").scenarios == SCENARIOS
    assert settings("--scenario", "offline", "--scenario", "single-stream").scenarios == (
        "single-stream",
        "offline",
    )
    assert settings("--scenario", "none").scenarios == ()
    assert settings("--only", "cold", "--only", "stages").parts == ("cold", "stages")
    assert settings("--skip", "cold").parts == tuple(part for part in PARTS if part != "cold")
    assert settings("--skip", "all").parts == ()
    found = settings(
        "--min-seconds", 3, "--launches", 2, "--min-queries", 9, "--part-seconds", 0.5, "--seed", 4
    )
    assert found == preset(
        "standard",
        task="auto",
        min_seconds=3,
        max_seconds=9,
        launches=2,
        min_queries=9,
        part_seconds=0.5,
        seed=4,
    )
    assert settings("--min-seconds", 3, "--max-seconds", 4).max_seconds == 4
    found = settings("--engine", "tensorrt,onnxruntime-cpu", "--variant", "a", "--threads", 3, "--exact")
    assert found == preset(
        "standard",
        task="auto",
        engines=("tensorrt", "onnxruntime-cpu"),
        variants=("a",),
        threads=3,
        decode="exact",
    )
    assert settings("--require", "tensorrt").engines == ("tensorrt",)
    assert settings("--labels", "a cat, a dog", "--task", "classify").labels == ("a cat", "a dog")
    assert edgeclip("bench", toy, "--images", photos).code == 0
    assert asked[-1][2] == photos


def test_a_bundle_called_like_a_verb(
    asked: list[Any], toy: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.rename(toy.with_name("compare"))
    monkeypatch.chdir(toy.parent)
    toy.with_name("compare").rename(toy.with_name("toy"))
    (toy.parent / "compare").symlink_to(toy)
    assert edgeclip("bench", "./compare").code == 0
    assert asked[-1][0] == "./compare"
    assert edgeclip("bench", "compare").line.startswith("edgeclip: Missing argument 'A'.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench"], "Missing argument 'BUNDLE'. See `edgeclip bench --help`."),
        (["bench", "nano", "--quick", "--full"], "--quick and --full: expected one of them."),
        (["bench", "nano", "--task", "segment"], "task 'segment': no such task. Choose one of classify, "),
        (["bench", "nano", "--scenario", "x"], "Invalid value for '--scenario': 'x' is not one of"),
        (["bench", "nano", "--engine", "a", "--require", "b"], "--engine a and --require b: expected one of them."),
        (["bench", "nano", "--scenario", "none", "--skip", "all"], "nothing to measure"),
        (["bench", "nano", "--max-seconds", "1"], "max_seconds: expected at least min_seconds, 60, got 1."),
        (["bench", "nano", "--bound", "50", "--scenario", "offline", "--skip", "all", "--quick"], "server_bound_ms: is of the scenario server"),
        (["bench", "nano", "--labels", ""], "no labels. Pass --labels"),
        (["bench", "/no/such"], "/no/such: no such bundle."),
        (["bench", "nano", "-o", "/"], "/: expected the name of a file"),
        (["bench", "nano", "-o", "x", "--html", "./x"], "x: two results would be written to the same file."),
        (["bench", "matrix", "nano", "--min-seconds", "3"], "No such option"),  # it would change nothing
        (["bench", "compare", "--live", "a", "b", "--part-seconds", "3"], "No such option"),
        (["bench", "compare", "a.json"], "Missing argument 'B'."),
        (["bench", "compare", "a.json", "b.json", "--fail-if", "p99"], "gate 'p99': expected "),
        (["bench", "compare", "a.json", "b.json"], "a.json: cannot be read"),
        (["bench", "compare", "a.json", "b.json", "--quick"], "--quick says how to measure, which reports hold already."),
        (["bench", "compare", "--live", "a", "b", "--allow", "device"], "--allow is for reports"),
        (["bench", "matrix", "nano", "--batch", "1,x"], "--batch 1,x: expected numbers above 0"),
        (["bench", "show", "no.json"], "no.json: cannot be read"),
        (["bench", "attach", "no.json", "nano"], "Missing option '-o' / '--output'."),
        (["bench", "attach", "no.json", "nano", "-o", "x"], "no.json: cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_command_lines_get_one_line(arguments: list[str], message: str, edgeclip: Edgeclip) -> None:
    said = edgeclip(*arguments)
    assert said.code == 2
    assert said.line.startswith(f"edgeclip: {message}")


def test_an_interrupted_run_leaves_nothing(
    toy: Path, tmp_path: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Report:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeclip.bench.measure.measure", interrupted)
    said = edgeclip("bench", toy, "-o", tmp_path / "r.json")
    assert (said.code, said.out, said.err.strip()) == (130, "", "edgeclip: interrupted")
    assert not (tmp_path / "r.json").exists()
    assert not open_bundle(toy).cache.exists()


def test_a_query_that_fails_is_one_line(
    toy: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Report:
        raise EngineError("toy: does not open.")

    monkeypatch.setattr("edgeclip.bench.measure.measure", fails)
    assert (edgeclip("bench", toy).code, edgeclip("bench", toy).line) == (2, "edgeclip: toy: does not open.")


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Two files with the same report."""
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        path.write_text(to_json(make_bare_report()))
    return paths


@pytest.mark.parametrize(
    ("change", "options", "code"),
    [
        ({}, [], 0),
        ({"gate": "p99>+5%", "failed": False}, [], 0),
        ({"gate": "p99>+5%", "failed": True}, [], 1),
    ],
)  # fmt: skip
def test_compare_exits_1_when_a_gate_fails(
    change: dict[str, Any], options: list[str], code: int, two: list[Path], edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    made = make_comparison(changes=(make_change(change=0.12, **change),), failed=change.get("failed", False))
    monkeypatch.setattr("edgeclip.bench.compare.compare", lambda *_, **__: made)
    said = edgeclip("bench", "compare", *two, *options)
    assert said.code == code
    assert "p99" in said.out  # the table stands in any case
    if code:
        assert said.err.splitlines()[-1].endswith("single-stream p99 15.68 ms, +12.0% (p99>+5%).")


def test_compare_refuses_a_bundle(two: list[Path], toy: Path, edgeclip: Edgeclip) -> None:
    assert edgeclip("bench", "compare", two[0], toy).line.endswith("got a bundle. For bundles pass --live.")


def test_compare_passes_on_what_was_allowed(
    two: list[Path], edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def compared(a: Report, b: Report, gates: Any, **others: Any) -> Comparison:
        seen.append((a.subject, b.subject, [gate.text for gate in gates], others))
        return make_comparison()

    monkeypatch.setattr("edgeclip.bench.compare.compare", compared)
    edgeclip("bench", "compare", *two, "--allow", "device", "--fail-if", "p99>+5%", "--strict")
    subject = make_bare_report().subject
    assert seen == [(subject, subject, ["p99>+5%"], {"allow": ("device",), "strict": True})]


def test_live_takes_bundles_and_settings(
    toy: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def live(a: str, b: str, settings: Settings, inputs: Any, gates: Any, tell: Any, **_: Any) -> Comparison:
        seen.append((a, b, settings.preset, inputs.facts.kind))
        return make_comparison(how="live")

    monkeypatch.setattr("edgeclip.bench.live.compare_live", live)
    edgeclip("bench", "compare", "--live", toy, toy, "--quick", "--task", "embed-text")
    assert seen == [(str(toy), str(toy), "quick", "texts")]


def test_matrix(toy: Path, tmp_path: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(
        bundle: Any,
        settings: Settings,
        engines: Any,
        variants: Any,
        batches: Any,
        folder: Path,
        inputs: Any,
        tell: Any,
        **others: Any,
    ) -> Any:
        seen.append((bundle.root, settings, engines, variants, batches, folder, others))
        return make_matrix()

    monkeypatch.setattr("edgeclip.bench.matrix.run_matrix", run)
    said = edgeclip(
        "bench",
        "matrix",
        toy,
        "--quick",
        "--engine",
        "a,b",
        "--variant",
        "v",
        "--batch",
        "1, 4",
        "--task",
        "embed-text",
    )
    assert said.code == 0
    folder = open_bundle(toy).cache / "matrix"
    assert seen == [
        (toy, preset("quick", task="embed-text"), ("a", "b"), ("v",), (1, 4), folder, {"retry_failed": False})
    ]
    out = tmp_path / "m.json"
    said = edgeclip(
        "bench",
        "matrix",
        toy,
        "--task",
        "embed-text",
        "--folder",
        tmp_path,
        "--retry-failed",
        "-o",
        out,
        "--json",
    )
    assert seen[-1][2:] == ((), (), (1, 8), tmp_path, {"retry_failed": True})
    assert said.out == out.read_text() == to_json(make_matrix())


@pytest.mark.parametrize(
    "made", [make_bare_report(), make_comparison(), make_matrix()], ids=lambda made: type(made).__name__
)
def test_show(made: Any, tmp_path: Path, edgeclip: Edgeclip) -> None:
    (tmp_path / "x.json").write_text(to_json(made))
    said = edgeclip("bench", "show", tmp_path / "x.json", "--html", tmp_path / "x.html")
    assert (said.code, said.err) == (0, "")
    assert len(said.out.splitlines()) > 3
    assert "<html" in (tmp_path / "x.html").read_text()
    assert edgeclip("bench", "show", tmp_path / "x.json", "--json").out == to_json(made)


def test_attach_and_inspect(toy: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    report = report_of(toy)
    (tmp_path / "r.json").write_text(to_json(report))
    made = edgeclip("bench", "attach", tmp_path / "r.json", toy, "-o", tmp_path / "with", "--json").record
    opened = open_bundle(tmp_path / "with")
    assert made == {
        "path": str(opened.root),
        "digest": opened.digest,
        "reports": list(opened.manifest.reports),
    }
    assert edgeclip("verify", tmp_path / "with").code == 0
    single = report.scenarios[0]
    (record,) = edgeclip("inspect", tmp_path / "with", "--json").record["reports"]
    assert record == {
        "where": "bundle", "file": str(opened.root / opened.manifest.reports[0]), "created": report.created,
        "device": report.device.name, "task": "classify", "engine": "onnxruntime-cpu", "variant": "image-fp32",
        "precision": "fp32", "threads": 2, "p50_ms": single.latency.p50.ms, "p90_ms": single.latency.p90.ms,
        "throughput_per_s": None, "warnings": 1,
    }  # fmt: skip
    (line,) = [
        one for one in edgeclip("inspect", tmp_path / "with").out.splitlines() if one.startswith("report")
    ]
    assert line.startswith(
        f"report: {report.created[:16]} on {report.device.name}, classify, onnxruntime-cpu, fp32, 2 threads: p50"
    )
    again = edgeclip("bench", "attach", tmp_path / "r.json", toy, "-o", tmp_path / "with")
    assert (again.code, "already exists" in again.line) == (2, True)


def test_a_terminal_obeys_no_report(toy: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    report = report_of(toy)
    (tmp_path / "r.json").write_text(
        to_json(replace(report, device=replace(report.device, name="Orin\x1b[2J")))
    )
    edgeclip("bench", "attach", tmp_path / "r.json", toy, "-o", tmp_path / "with")
    shown = edgeclip("inspect", tmp_path / "with").out
    assert " on Orin\ufffd[2J, " in shown
    assert "\x1b" not in shown
    assert edgeclip("bench", "show", "a\x1b[2J.json").line.startswith(
        "edgeclip: a\ufffd[2J.json: cannot be read"
    )


def test_inspect_lists_local_reports(asked: list[Any], toy: Path, edgeclip: Edgeclip) -> None:
    assert edgeclip("inspect", toy, "--json").record["reports"] == []
    edgeclip("bench", toy)
    (record,) = edgeclip("inspect", toy, "--json").record["reports"]
    assert record["where"] == "local"
    assert "report (local): " in edgeclip("inspect", toy).out
    Path(record["file"]).write_text("{")
    said = edgeclip("inspect", toy, "--json")
    assert json.loads(said.out)["reports"] == []
    assert "passed over" in said.err


@pytest.mark.parametrize("verb", [(), ("compare",), ("matrix",), ("show",), ("attach",)])
def test_help_fits_80_columns(verb: tuple[str, ...], edgeclip: Edgeclip) -> None:
    assert max(map(len, edgeclip("bench", *verb, "--help").out.splitlines())) <= 80
