"""Models in turns, and what is said of the milliseconds where the machine was not theirs."""

from __future__ import annotations

import pytest

from edgeclip.export.distill import timing
from edgeclip.export.distill.teachers import SourceTeacher, Teachers
from edgeclip.export.distill.timing import BUSY, LEAST, WARM, doubt, in_turns, share_of_others, time_models
from edgeclip.models.training.distributed import pick_device
from tests.export.sources import clip_source


def test_each_is_warmed_up_and_then_called_as_often_as_the_others() -> None:
    called: list[str] = []
    took = in_turns([lambda: called.append("a"), lambda: called.append("b")], seconds=0)
    assert called[: 2 * WARM] == ["a"] * WARM + ["b"] * WARM
    assert "".join(called[2 * WARM :]) == "baab" * (LEAST // 2) + "ba"
    assert [one.calls for one in took] == [LEAST, LEAST]


def test_what_others_took_is_a_share_of_all_cores() -> None:
    assert share_of_others(7, 1007, elapsed_ns=500, cores=4) == 0.5
    assert share_of_others(7, 5, elapsed_ns=500, cores=4) == 0  # this program's own time is known more finely
    assert share_of_others(7, 9007, elapsed_ns=500, cores=4) == 1
    assert share_of_others(None, 7, elapsed_ns=500, cores=4) is share_of_others(7, None, 500, 4) is None


@pytest.mark.parametrize(("told", "share"), [((7, 10**15), 1.0), ((10**15, 7), 0.0), ((None, None), None)])
def test_models_are_timed_between_two_looks_at_the_others(
    told: tuple[int | None, int | None], share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(told)
    monkeypatch.setattr(timing, "others_ns", lambda: next(looks))
    model = Teachers((SourceTeacher(clip_source(layers=1), pick_device("cpu")),))
    found = time_models([model], "a cat", 0)
    assert found.others == share
    assert found.pictures[0].calls == found.texts[0].calls == LEAST


def test_doubts_are_told_where_others_had_a_tenth() -> None:
    assert (
        doubt(BUSY)
        == "Other programs took 10 % of the cores while the models were timed: alone they are faster, some by far."
    )
    assert doubt(None) == doubt(0.0) == doubt(BUSY - 1e-9) == ""
