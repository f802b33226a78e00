from __future__ import annotations

import pytest

from edgeclip.bench.comparison import Change
from edgeclip.bench.gate import apply_gates, parse_gate
from edgeclip.errors import InputError
from tests.mutants import broken


def change(metric="p99", change=0.08, low=0.02, high=0.14, scenario="single-stream", verdict="worse", **more):
    return Change(scenario, metric, "ms", 10.0, 10.0 * (1 + change), change, low, high, verdict, 0.05, **more)


@pytest.mark.parametrize(
    ("text", "limit", "above", "relative"),
    [
        ("p99>+5%", 0.05, True, True),
        ("throughput < -2.5%", -0.025, False, True),
        ("p50>20ms", 20.0, True, False),
        ("p50>0.5s", 500.0, True, False),
        ("mean>800us", 0.8, True, False),
        ("rss>1.5GB", 1500.0, True, False),
        ("throughput<30/s", 30.0, False, False),
        ("energy>250mJ", 0.25, True, False),
    ],
)
def test_limits_are_read(text, limit, above, relative):
    gate = parse_gate(text)
    assert (gate.limit, gate.above, gate.relative, gate.scenario) == (
        pytest.approx(limit),
        above,
        relative,
        "",
    )


def test_a_scenario_may_stand_before():
    assert parse_gate("multi-stream:p99>+5%").scenario == "multi-stream"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected [SCENARIO:]METRIC>LIMIT. Write p99>+5%"),
        ("p99", "expected [SCENARIO:]METRIC>LIMIT"),
        ("p99>", "expected [SCENARIO:]METRIC>LIMIT"),
        ("p99>=5%", "expected [SCENARIO:]METRIC>LIMIT"),
        ("p95>+5%", "no metric 'p95'. Choose one of p50, p90, p99"),
        ("burst:p99>+5%", "no scenario 'burst'. Choose one of single-stream"),
        ("p99>-5%", "its sign follows its side: p99>+5%"),
        ("p99>5%", "its sign follows its side: p99>+5%"),
        ("throughput<5%", "its sign follows its side: throughput<-5%"),
        ("p99>20", "20 is no limit of p99. Give a change in %, or a figure without sign in us, ms, s"),
        ("p99>20GB", "20GB is no limit of p99"),
        ("p99>+20ms", "+20ms is no limit of p99"),
    ],
)
def test_nonsense_is_refused_in_one_line(text, said):
    with pytest.raises(InputError) as caught:
        parse_gate(text)
    told = str(caught.value)
    assert (said in told, repr(text) in told, "\n" in told) == (True, True, False), told


def judged(gate, one, ends=(10.2, 11.4), **how):
    return apply_gates([one], [ends], [parse_gate(gate)], **how)[0]


def test_a_change_past_the_limit_fails_only_when_it_is_more_than_chance():
    assert judged("p99>+5%", change()).failed
    assert not judged("p99>+10%", change()).failed  # past 10 % is possible, 8 % is the estimate
    noisy = change(low=-0.03, high=0.2, verdict="undecided")
    assert not judged("p99>+5%", noisy).failed
    assert "undecided" in judged("p99>+5%", noisy).note
    assert judged("p99>+5%", noisy, strict=True).failed


def test_throughput_fails_downwards():
    down = change("throughput", -0.08, -0.12, -0.03)
    assert judged("throughput<-5%", down).failed
    assert not judged("throughput<-10%", down).failed
    assert not judged("throughput<-5%", change("throughput", 0.08, 0.02, 0.12)).failed


def test_a_figure_fails_when_its_whole_interval_is_past():
    assert judged("p99>10ms", change()).failed
    near = judged("p99>11ms", change())  # 10.8, from 10.2 to 11.4
    assert (near.failed, "undecided" in near.note) == (False, True)
    assert judged("p99>11ms", change(), strict=True).failed
    assert not judged("p99>12ms", change(), strict=True).failed


def test_exact_figures_have_no_chance_and_unknown_ones_nothing_else():
    size = change("size", 0.08, None, None, scenario="")
    assert judged("size>+5%", size).failed
    unknown = change("p99", 0.3, None, None, verdict="undecided")
    told = judged("p99>+5%", unknown)
    assert (told.failed, told.undecided) == (False, True)
    assert told.note == "p99>+5%: undecided, the change has no interval"
    assert judged("p99>+5%", unknown, strict=True).failed


def test_memory_that_moved_within_its_noise_does_not_fail():
    rss = change("rss", 0.02, None, None, scenario="", verdict="same")  # told from 5 % on
    assert (judged("rss>+1%", rss).failed, judged("rss>+1%", rss).undecided) == (False, True)
    assert not judged("rss>+8%", rss, strict=True).failed


def test_a_figure_without_an_interval_decides_by_itself_and_says_so():
    unknown = change("p99", 0.3, None, None, verdict="undecided")  # 13 ms
    for gate, failed in (("p99>12ms", True), ("p99>14ms", False)):
        told = judged(gate, unknown, (13.0, 13.0), strict=True)
        assert (told.failed, told.undecided) == (failed, False)
        assert told.note == f"{gate}: decided by the figure alone, which has no interval"


def test_a_gate_that_holds_is_not_undecided_though_the_change_is():
    noisy = change(low=-0.03, high=0.2, verdict="undecided")
    told = judged("p99>20ms", noisy)
    assert (told.failed, told.undecided, told.note) == (False, False, "")
    assert judged("p99>+5%", noisy).note == "p99>+5%: undecided, the interval reaches +20.0%"
    assert judged("p99>11ms", noisy).note == "p99>11ms: undecided, the interval reaches 11.4 ms"


def test_several_gates_share_a_row_and_pass_over_others():
    rows = [change(), change(scenario="offline", change=0.2, low=0.1, high=0.3), change("p50", 0.2, 0.1, 0.3)]
    gates = [parse_gate("single-stream:p99>+5%"), parse_gate("p99>20ms")]
    first, second, third = apply_gates(rows, [(10.2, 11.4)] * 3, gates)
    assert (first.gate, first.failed) == ("single-stream:p99>+5%, p99>20ms", True)
    assert (second.gate, second.failed) == ("p99>20ms", False)
    assert (third.gate, third.failed) == ("", False)


def test_a_gate_on_what_was_not_measured_is_refused():
    with pytest.raises(
        InputError, match=r"gate energy>\+5%: not measured in both runs.*They share single-stream:p99\."
    ):
        judged("energy>+5%", change())


def test_planted_faults_are_caught(monkeypatch):
    from edgeclip.bench.gate import Gate

    noisy = change(low=-0.03, high=0.2, verdict="undecided")
    for old, new, one in (
        (
            "failed = self._past(change.change) and (low > 0 if self.above else high < 0)",
            "failed = self._past(change.change)",
            noisy,
        ),
        ("self._past(low if self.above else high)\n", "self._past(high)\n", None),
    ):
        monkeypatch.setattr(Gate, "judge", broken(Gate.judge, old, new))
        assert (judged("p99>+5%", one) if one else judged("p99>11ms", change())).failed
        monkeypatch.undo()
