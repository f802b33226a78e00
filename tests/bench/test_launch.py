"""One launch of a scenario: what goes to the fresh process, what comes back, and what becomes of its errors."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from edgeclip.bench import launch as launching
from edgeclip.bench.between import Nothing
from edgeclip.bench.launch import launch
from edgeclip.bench.report import PictureSet
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.errors import EngineError, InputError
from tests.runtime.toy import make_bundle, picture

SETTINGS = Settings(
    task="embed", min_seconds=0.2, max_seconds=1.0, min_queries=20, launches=1, part_seconds=0.1
)


def inputs() -> Inputs:
    """Two pictures."""
    found = []
    for seed in (1, 2):
        stream = io.BytesIO()
        Image.fromarray(picture(seed)).save(stream, "PNG")
        found.append(stream.getvalue())
    return Inputs(tuple(found), (), PictureSet("pictures", 2, len(found[0]), 48 * 40, "0" * 64))


def test_a_launch_measures_in_a_process_of_its_own(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy")
    before = time.perf_counter_ns()
    found = launch(bundle.spec, "single-stream", SETTINGS, inputs())
    after = time.perf_counter_ns()
    assert before < found.begun_ns < found.ended_ns < after  # one clock for all processes
    assert found.result.scenario == "single-stream"
    assert found.result.queries >= 20
    latencies = found.result.latencies
    assert latencies is not None
    assert set(latencies.sample) == {0, 1}
    assert found.ended_ns - found.begun_ns > 1e6 * sum(latencies.ms)
    (tower,) = found.used.towers
    graph = bundle.manifest.files["graphs/image-fp32.onnx"].sha256
    assert (tower.tower, tower.engine, tower.provider) == ("image", "onnxruntime-cpu", "CPUExecutionProvider")
    assert (tower.variant, tower.precision, tower.graph_sha256) == ("image-fp32", "fp32", graph)


def test_its_errors_arrive_as_they_were(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy", image=False)
    with pytest.raises(InputError, match=r"task 'embed' needs an? image tower"):
        launch(bundle.spec, "single-stream", SETTINGS, inputs())


def test_one_that_is_killed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "COMMAND", ("sh", "-c", "kill -9 $$"))
    with pytest.raises(EngineError, match="x: the process that measured offline was ended by SIGKILL"):
        launch("x", "offline", SETTINGS, inputs())


def test_a_bug_in_it_is_a_bug_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "COMMAND", ("sh", "-c", "echo Traceback >&2; exit 1"))
    with pytest.raises(RuntimeError, match="Traceback"):
        launch("x", "offline", SETTINGS, inputs())


def test_pictures_of_any_bytes_arrive_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newlines separate the request's parts, and pictures hold newlines."""
    raw: list[bytes] = []
    monkeypatch.setattr(launching.subprocess, "run", lambda *a, **k: raw.append(k["input"]) or 1 / 0)
    odd = (b"\n\n", b"", bytes(range(256)), b"{}\n")
    given = replace(inputs(), pictures=odd)
    with pytest.raises(ZeroDivisionError):
        launch("x", "offline", SETTINGS, given)
    seen: list[Inputs] = []
    monkeypatch.setattr(launching, "_measure", lambda request, got, warned: seen.append(got) or _stop())
    answer = json.loads(launching.answer_to(raw[0]))
    assert answer == {"error": "InputError", "message": "stop"}
    assert seen == [given]


def _stop() -> None:
    raise InputError("stop")


def test_energy_covers_the_measuring_only() -> None:
    noted = launching.Begun(Nothing())
    first = noted.begun_ns
    noted.begin()
    assert noted.begun_ns > first
