"""Models in turns, and what is said of the milliseconds where the machine was not theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest

from edgeclip.export.distill import timing
from edgeclip.export.distill.teachers import SourceTeacher, Teachers
from edgeclip.export.distill.timing import LEAST, WARM, Times, doubt, in_turns, time_models
from edgeclip.models.training.distributed import pick_device
from tests.export.sources import clip_source


def test_each_is_warmed_up_and_then_called_as_often_as_the_others() -> None:
    called: list[str] = []
    took = in_turns([lambda: called.append("a"), lambda: called.append("b")], seconds=0)
    assert called[: 2 * WARM] == ["a"] * WARM + ["b"] * WARM
    assert "".join(called[2 * WARM :]) == "baab" * (LEAST // 2) + "ba"
    assert [one.calls for one in took] == [LEAST, LEAST]


def timed(monkeypatch: pytest.MonkeyPatch, others: Iterator[int | None]) -> Times:
    monkeypatch.setattr(timing, "others_ns", lambda: next(others))
    model = Teachers((SourceTeacher(clip_source(layers=1), pick_device("cpu")),))
    return time_models([model], "a cat", 0)


def test_what_others_took_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(0, 1_000_000_000)
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: next(clock))
    calls = 2 * (2 * LEAST) + 1  # two looks at the clock each, and one more at the end
    half = int(calls * 1e9 * (os.cpu_count() or 1) / 2)
    found = timed(monkeypatch, iter([7, 7 + half]))
    assert found.others == pytest.approx(0.5)
    assert found.pictures[0].calls == found.texts[0].calls == LEAST
    assert doubt(found.others).startswith("Other programs took 50 % of the cores")


def test_nothing_is_said_of_a_machine_that_was_theirs_or_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert timed(monkeypatch, iter([7, 5])).others == 0  # this program's own time is known more finely
    assert timed(monkeypatch, iter([None, None])).others is None
    assert doubt(None) == doubt(0.0) == doubt(np.nextafter(timing.BUSY, 0)) == ""
