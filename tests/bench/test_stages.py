"""Stages of a call add up to it, and the whole agrees with somebody else's watch on the same calls."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter_ns
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip.bench import stages as measuring
from edgeclip.bench.between import Nothing
from edgeclip.bench.report import PictureSet, Stages
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings, preset
from edgeclip.bench.stages import LEAST, measure_stages
from edgeclip.bench.tasks import open_task
from edgeclip.errors import InputError
from edgeclip.runtime import stages
from edgeclip.runtime.model import Model, load
from tests.mutants import broken
from tests.runtime.toy import make_bundle, picture

SHORT = preset("quick", part_seconds=0.01, labels=("a cat", "a dog"))


def jpegs(count: int) -> Inputs:
    files = []
    for seed in range(count):
        file = io.BytesIO()
        Image.fromarray(picture(seed, 90, 70)).save(file, "JPEG")
        files.append(file.getvalue())
    return Inputs(tuple(files), ("a cat", "a dog and a bicycle"), PictureSet("pictures", count, 0, 0, ""))


class Watch:
    """Time that only work moves, in ns."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1
        patch.setattr(stages, "perf_counter_ns", self)

    def __call__(self) -> int:
        return self.now

    def part(self, name: str, ms: float, inside: Sequence[tuple[str, float]] = ()) -> None:
        begun = stages.begin()
        for inner in inside:
            self.part(*inner)
        self.now += int(1e6 * ms)
        stages.end(name, begun)


class Counted:
    """A task of known parts: 2 ms decode inside 1 ms preprocess, 5 ms tower, every third call 3 ms of text, 0.5 ms nobody's."""

    unit, samples = "picture", 7

    def __init__(self, watch: Watch) -> None:
        self.watch, self.calls = watch, 0

    def query(self, samples: Sequence[int]) -> None:
        assert len(samples) == 1
        self.calls += 1
        self.watch.part("preprocess", 1, [("decode", 2)])
        if self.calls % 3 == 0:
            self.watch.part("text tower", 3)
        self.watch.part("image tower", 5)
        self.watch.now += 500_000


def model_with(*overlaps: bool) -> Any:
    towers = [SimpleNamespace(engine=SimpleNamespace(overlaps=one)) for one in overlaps]
    return SimpleNamespace(towers=(*towers, SimpleNamespace(engine=None)))


def counted(patch: pytest.MonkeyPatch) -> Stages:
    watch = Watch(patch)
    patch.setattr(measuring, "_place_us", lambda spans: 1.0)
    patch.setattr(measuring, "warm_up", lambda query, begin, seconds: query(next(begin())))
    settings = preset("quick", part_seconds=1.0)
    return measure_stages(model_with(False), Counted(watch), settings, Nothing(), clock=watch)  # type: ignore[arg-type]


def means(found: Stages) -> dict[str, float]:
    return {stage.name: round(stage.time.mean_ms, 3) for stage in found.stages}


def test_each_part_gets_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = counted(monkeypatch)
    calls = 106  # of 8.5 ms and, every third, 3 more: a second of them, after the first call
    assert found.whole.count == calls
    text = round(3 * 35 / calls, 3)
    assert means(found) == {"decode": 2, "preprocess": 1, "image tower": 5, "text tower": text, "other": 0.5}
    assert [stage.name for stage in found.stages] == [
        "decode",
        "preprocess",
        "image tower",
        "text tower",
        "other",
    ]
    by_name = {stage.name: stage for stage in found.stages}
    assert by_name["text tower"].time.min_ms == 0, "a call without it"
    assert by_name["text tower"].time.max_ms == 3
    assert sum(stage.share for stage in found.stages) == pytest.approx(1)
    assert sum(stage.time.mean_ms for stage in found.stages) == pytest.approx(found.whole.mean_ms)


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ("_put_together", "whole - sum(rows.values())", "0 * whole"),
        ("_put_together", "call.get(name, 0)", "call.get(name, 1_000_000)"),
        ("measure_stages", "            spans.clear()\n            spent", "            spent"),
    ],
)
def test_time_that_is_lost_or_counted_twice_would_be_seen(
    monkeypatch: pytest.MonkeyPatch, function: str, old: str, new: str
) -> None:
    good = counted(monkeypatch)
    mutant = broken(getattr(measuring, function), old, new)
    monkeypatch.setattr(measuring, function, mutant)
    if function == "measure_stages":
        watch = Watch(monkeypatch)
        task: Any = Counted(watch)
        bad = mutant(model_with(False), task, preset("quick", part_seconds=1.0), Nothing(), clock=watch)
        us = [float(found.notes[-1].split()[-5]) for found in (good, bad)]
        assert us[1] > 10 * us[0], "parts of all the calls before"
    else:
        assert means(counted(monkeypatch)) != means(good)


def test_notes_say_what_became_of_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    of = measuring._of_copies
    assert "computes where" in of(model_with(False), [{"decode": 1}])[0]
    assert "share their memory" in of(model_with(False, True), [{"decode": 1}])[0]
    assert "overlap is off" in of(model_with(True), [{}, {"copy in": 1}])[0]


# --- a real model


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with load(make_bundle(tmp_path / "bundle"), threads=1) as found:
        yield found


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ("classify", {"decode", "preprocess", "image tower", "head", "other"}),
        ("embed", {"decode", "preprocess", "image tower", "other"}),
        ("embed-text", {"tokenize", "text tower", "other"}),
        ("search", {"tokenize", "text tower", "head", "other"}),
    ],
)
def test_parts_of_each_task(model: Model, task: str, parts: set[str]) -> None:
    settings = preset("quick", part_seconds=0.01, labels=SHORT.labels, task=task, index_size=50)
    found = measure_stages(model, open_task(task, model, jpegs(3), settings), settings, Nothing())
    assert {stage.name for stage in found.stages} == parts, (
        "towers that are opened once are no part of a call"
    )
    assert found.whole.count >= LEAST
    assert sum(stage.time.mean_ms for stage in found.stages) == pytest.approx(found.whole.mean_ms)
    assert all(stage.time.min_ms >= 0 for stage in found.stages)


class Watched:
    """The task, timed from within by another hand: the very calls of `model.classify`."""

    def __init__(self, model: Model, settings: Settings, inputs: Inputs) -> None:
        self.model, self.inputs, self.ns = model, inputs, list[int]()
        self.labels = model.make_labels(settings.labels)
        self.unit, self.samples = "picture", len(inputs.pictures)

    def query(self, samples: Sequence[int]) -> None:
        start = perf_counter_ns()
        self.model.classify(self.inputs.pictures[samples[0]], self.labels)
        self.ns.append(perf_counter_ns() - start)


def test_the_whole_agrees_with_another_watch(model: Model) -> None:
    task: Any = Watched(model, SHORT, jpegs(5))
    found = measure_stages(model, task, preset("quick", part_seconds=0.2), Nothing())
    own = np.array(task.ns[-found.whole.count :]) / 1e6
    # The two look at the clock 1 us apart. Where the machine takes the core away in between, one call differs, and not the median.
    assert found.whole.p50.ms == pytest.approx(float(np.median(own)), rel=0.01, abs=0.01)


def test_nobody_is_left_listening_after_a_failure(model: Model) -> None:
    inputs = Inputs((b"no picture",), (), PictureSet("pictures", 1, 0, 0, ""))
    with pytest.raises(InputError, match="not a picture"):
        measure_stages(model, open_task("embed", model, inputs, SHORT), SHORT, Nothing())
    assert not stages.listening()
