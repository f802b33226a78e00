"""Sweeps: every point is there, those that fail with their reason; figures follow from the calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclip.bench import sweeps
from edgeclip.bench.between import Nothing
from edgeclip.bench.settings import preset
from edgeclip.bench.sweeps import sweep_batches, sweep_threads, thread_counts
from edgeclip.errors import EngineError
from edgeclip.runtime.model import Model, load
from tests.bench.test_stages import SHORT, jpegs
from tests.mutants import broken
from tests.runtime.toy import make_bundle

POINTS = preset("quick", part_seconds=0.004, batches=(1, 2, 4, 8, 16))


class Noted:
    """A task that notes how many inputs its calls get, and fails at some."""

    unit, samples = "picture", 3

    def __init__(self) -> None:
        self.rows: list[int] = []

    def query(self, samples: Sequence[int]) -> None:
        self.rows.append(len(samples))
        time.sleep(2e-4)
        if len(samples) == 4:
            raise EngineError("image-fp32: no room for 4 rows.")
        if len(samples) == 8:
            raise MemoryError


class Opened:
    """A model with an engine that was built for few rows."""

    def __init__(self, max_batch: int | None = None) -> None:
        engine = SimpleNamespace(**({} if max_batch is None else {"max_batch": max_batch}))
        self.towers = (SimpleNamespace(engine=None), SimpleNamespace(engine=engine))
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    task = Noted()
    monkeypatch.setattr(sweeps, "PATIENCE", 10_000)  # however busy the machine
    monkeypatch.setattr(sweeps, "settled", nullcontext)  # collecting all of pytest's garbage takes 0.2 s
    monkeypatch.setattr(sweeps, "open_task", lambda *_: task)
    return task


def swept(model: Any) -> dict[int, str]:
    return {p.value: p.failed for p in sweep_batches(model, jpegs(1), POINTS, Nothing())}


def test_points_that_fail_keep_their_reason(noted: Noted) -> None:
    assert swept(Opened()) == {
        1: "", 2: "", 4: "image-fp32: no room for 4 rows.", 8: "no memory is left", 16: "",
    }  # fmt: skip
    assert {1, 2, 4, 8, 16} == set(noted.rows)


def test_batches_beyond_what_an_engine_was_built_for_are_not_measured_in_pieces(
    noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = "the engine was built for 2 rows a call at most"
    assert swept(Opened(2)) == {1: "", 2: "", 4: beyond, 8: beyond, 16: beyond}
    assert max(noted.rows) == 2
    monkeypatch.setattr(sweeps, "_point", broken(sweeps._point, "rows > most", "rows > 1000"))
    assert swept(Opened(2))[16] == ""


def test_failed_points_have_no_figures(noted: Noted) -> None:
    points = sweep_batches(Opened(), jpegs(1), POINTS, Nothing())  # type: ignore[arg-type]
    for point in points:
        if point.failed:
            assert (point.throughput_per_s, point.latency.count, point.latency.max_ms) == (0, 0, 0)
        else:
            assert point.latency.count >= sweeps.LEAST
            assert point.throughput_per_s == pytest.approx(1e3 * point.value / point.latency.mean_ms)


def test_threads_are_doubled_up_to_the_cores() -> None:
    assert [thread_counts(n) for n in (1, 2, 3, 6, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_each_number_of_threads_gets_a_model_that_is_closed_again(
    noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "usable_cores", lambda: 4)
    models: dict[int, Opened] = {}

    def fresh(threads: int) -> Any:
        assert all(model.closed for model in models.values()), "one at a time: two would share the cores"
        if threads == 2:
            raise EngineError("two is one too many.")
        models[threads] = Opened()
        return models[threads]

    points = sweep_threads(fresh, jpegs(1), POINTS, Nothing())
    assert [(p.value, p.failed) for p in points] == [(1, ""), (2, "two is one too many."), (4, "")]
    assert {n: model.closed for n, model in models.items()} == {1: 1, 4: 1}
    assert set(noted.rows) == {1}


def test_a_real_model_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, inputs = make_bundle(tmp_path / "bundle"), jpegs(3)
    settings = preset("quick", part_seconds=0.01, batches=(1, 3), labels=SHORT.labels)
    given: list[int] = []
    with load(bundle, threads=1) as model:
        classify = model.classify
        monkeypatch.setattr(
            model, "classify", lambda x, *a, **k: (given.append(len(x) if type(x) is list else 1), classify(x, *a, **k))[1]
        )  # fmt: skip
        points = sweep_batches(model, inputs, settings, Nothing())
    assert [(p.value, p.failed) for p in points] == [(1, ""), (3, "")]
    assert set(given) == {1, 3}
    opened: list[int] = []

    def with_threads(threads: int) -> Model:
        opened.append(threads)
        return load(bundle, threads=threads)

    monkeypatch.setattr(sweeps, "usable_cores", lambda: 2)
    assert [p.failed for p in sweep_threads(with_threads, inputs, settings, Nothing())] == ["", ""]
    assert opened == [1, 2]
