from __future__ import annotations

import sys
from itertools import count

import numpy as np
import pytest

from edgeclip.bench import live as module
from edgeclip.bench.gate import parse_gate
from edgeclip.bench.live import compare_live
from edgeclip.bench.opening import Used
from edgeclip.bench.report import PictureSet, TowerUsed
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import preset
from edgeclip.bench.turns import Side, timed_turn
from edgeclip.errors import BundleError, EngineError, InputError
from tests.mutants import broken
from tests.runtime.toy import make_bundle

TEXTS = Inputs((), ("a cat", "a dog", "a bicycle"), PictureSet("texts", 3, 5, 0, "0" * 64))
SHORT = preset("quick", scenarios=("single-stream",), min_seconds=10.0, max_seconds=1e-9, launches=5)


class Machine:
    """What both sides run on: slow for seconds at a time, twice as slow at the end as at the beginning, and with a clock of its own."""

    def __init__(self, seed, slower_b=1.0, layout=0.03):
        self.rng, self.slower_b, self.layout = np.random.default_rng(seed), slower_b, layout
        self.now_s, self.noise, self.started = 0.0, 0.0, count()
        self.asked = []

    def start(self, bundle, settings, inputs):
        return Simulated(self, next(self.started) % 2)

    def turn_ns(self, factor, queries):
        self.noise = 0.95 * self.noise + 0.08 * self.rng.normal()  # sd 0.26, for five seconds
        ms = 15 * factor * np.exp(self.noise) * (1 + self.now_s / 20) * self.rng.lognormal(0, 0.1, queries)
        self.now_s += ms.sum() / 1e3
        return (1e6 * ms).astype(int).tolist()


class Simulated:
    def __init__(self, machine, which):
        self.machine, self.which = machine, which
        self.factor = machine.slower_b**which * machine.rng.lognormal(0, machine.layout)
        self.closed = False

    def opened(self):
        used = TowerUsed("image", "onnxruntime-cpu", "CPUExecutionProvider", "image-fp32", "fp32", "")
        return Used((used,), 2)

    def turn(self, queries):
        self.machine.asked.append((self.which, queries))
        return self.machine.turn_ns(self.factor, len(queries))

    def close(self):
        self.closed = True


def p50_of(machine, settings=SHORT, gates=(), **how):
    found = compare_live("nano", "nano", settings, TEXTS, gates, start=machine.start, **how)
    return next(one for one in found.changes if one.metric == "p50"), found


def test_no_change_is_not_flagged_and_a_slowdown_is_found():
    flagged_and_found(20)


def flagged_and_found(of):
    same = [p50_of(Machine(seed))[0] for seed in range(of)]
    slower = [p50_of(Machine(seed, 1.1))[0] for seed in range(of)]
    assert sum(one.verdict == "worse" for one in same) <= 1
    assert sum(one.verdict == "worse" for one in slower) >= of - 1
    assert not any(one.verdict == "better" for one in slower)


def test_a_gate_on_the_figure_itself_is_held():
    p50, _ = p50_of(Machine(3))
    for factor, failed in ((0.5, True), (2.0, False)):
        change, found = p50_of(Machine(3), gates=[parse_gate(f"p50>{factor * p50.b:.3f}ms")], strict=True)
        assert (change.failed, change.undecided, found.failed) == (failed, False, failed)
    near, _ = p50_of(
        Machine(3), gates=[parse_gate(f"p50>{0.99 * p50.b:.3f}ms")]
    )  # its noise lasts for seconds
    assert (near.failed, near.undecided) == (False, True)


def test_both_get_the_same_queries_and_take_turns_at_beginning():
    machine = Machine(0)
    p50_of(machine)
    turns = [(which, queries) for which, queries in machine.asked if len(queries) > 3]
    assert sum(which == 0 for which, _ in turns) == len(turns) / 2
    for which in (0, 1):
        assert len([1 for w, _ in turns if w == which]) >= 10 * 4
    mine, others = ([queries for which, queries in turns if which == k] for k in (0, 1))
    same = sum(a == b for a, b in zip(mine, others, strict=True))
    assert same >= len(mine) - 10  # but for the warm-up turn of each pair
    order = [which for which, _ in turns[2:10]]
    assert order == [0, 1, 1, 0, 0, 1, 1, 0]


def test_pairs_are_added_until_it_is_narrow_or_time_is_over(monkeypatch):
    machine = Machine(1, layout=0.05)
    _, short = p50_of(machine)
    wide = Machine(1, layout=0.05)
    monkeypatch.setattr(module, "perf_counter", lambda: wide.now_s)
    change, longer = p50_of(
        wide, preset("quick", scenarios=("single-stream",), min_seconds=10.0, max_seconds=1000.0, launches=4)
    )
    assert pairs_of(short) == 10
    assert pairs_of(longer) > 8
    assert change.resolution <= np.expm1(module.NARROW)
    steady = Machine(1, layout=0.001)
    monkeypatch.setattr(module, "perf_counter", lambda: steady.now_s)
    assert pairs_of(p50_of(steady)[1]) == 10


def pairs_of(found):
    return int(next(note for note in found.notes if "pairs of processes" in note).split()[1])


def test_gates_and_names_are_those_of_a_comparison():
    change, found = p50_of(Machine(2, 1.25), gates=[parse_gate("p50>+5%")])
    assert (found.how, found.failed, change.failed, change.gate) == ("live", True, True, "p50>+5%")
    assert (found.a, found.b) == ("nano (A)", "nano (B)")
    assert "nano (A): image-fp32 on CPUExecutionProvider, 2 threads" in found.notes
    rate = next(one for one in found.changes if one.metric == "throughput")
    assert (rate.verdict, rate.change < 0) == ("worse", True)


def test_a_server_cannot_take_turns():
    both = preset("quick", scenarios=("offline", "server"), min_seconds=1.0, max_seconds=1e-9)
    _, found = p50_of(Machine(3), both)
    assert any(note.startswith("server: not run") for note in found.notes)
    assert {one.scenario for one in found.changes} == {"offline", ""}
    with pytest.raises(InputError, match=r"cannot take turns\. Choose another scenario"):
        p50_of(Machine(3), preset("quick", scenarios=("server",)))


def test_a_side_that_fails_leaves_none_behind():
    started = []

    class Refusing(Simulated):
        def opened(self):
            if self.which:
                raise EngineError("no such engine")
            return super().opened()

    def start(bundle, settings, inputs):
        started.append(Refusing(machine, len(started) % 2))
        return started[-1]

    machine = Machine(4)
    with pytest.raises(EngineError, match="no such engine"):
        compare_live("nano", "nano", SHORT, TEXTS, start=start)
    assert [side.closed for side in started] == [True, True]


def test_the_first_query_of_a_turn_does_not_count():
    asked = []
    assert len(timed_turn(asked.append, [[1], [2]])) == 2
    assert asked == [[2], [1], [2]]


def test_two_bundles_in_processes_of_their_own(tmp_path):
    settings = preset(
        "quick", task="embed-text", scenarios=("single-stream",), min_seconds=0.05, max_seconds=0.1, threads=1
    )
    toy = make_bundle(tmp_path / "toy")
    with Side(toy.spec, settings, TEXTS) as side:
        used = side.opened()
        assert [tower.variant for tower in used.towers] == ["text-fp32"]
        lasted = side.turn([[0], [1], [2]])
        assert len(lasted) == 3
        assert 0 < min(lasted) < 1e9
        process = side._process
    assert process.returncode == 0


def test_what_a_side_meets_arrives_as_it_met_it(tmp_path):
    settings = preset("quick", task="embed-text")
    with Side(str(tmp_path / "none"), settings, TEXTS) as side, pytest.raises(BundleError, match="none"):
        side.opened()
    for program, error, said in (
        ("import os; os.kill(os.getpid(), 9)", EngineError, "was ended by signal 9"),
        ("raise ZeroDivisionError('planted')", RuntimeError, "planted"),
    ):
        with (
            Side("toy", settings, TEXTS, [sys.executable, "-c", program]) as side,
            pytest.raises(error, match=said),
        ):
            side.opened()


def test_a_side_that_is_killed_between_turns_is_told_of():
    program = 'import sys; sys.stdin.readline(); print(\'{"towers": [], "threads": 1, "fell_back": ""}\', flush=True); sys.stdin.read()'
    side = Side("toy", SHORT, TEXTS, [sys.executable, "-c", program])
    side.opened()
    side._process.kill()
    side._process.wait()
    with pytest.raises(EngineError, match="was ended by signal 9"):
        side.turn([[0]])
    side.close()


def test_a_side_that_cannot_be_started_leaves_none_behind():
    started = []

    def start(bundle, settings, inputs):
        if started:
            raise OSError("no more processes")
        started.append(Simulated(Machine(5), 0))
        return started[-1]

    with pytest.raises(OSError, match="no more processes"):
        compare_live("nano", "nano", SHORT, TEXTS, start=start)
    assert started[0].closed


def test_planted_faults_are_caught(monkeypatch):
    faults = (
        ("_turns", "found.append((sides[0].turn(asked), second))", "found.append((second, sides[0].turn(asked)))", lambda: flagged_and_found(4)),
        ("_turns", "if (len(found) + pair) % 2:", "if False:", test_both_get_the_same_queries_and_take_turns_at_beginning),
    )  # fmt: skip
    for name, old, new, test in faults:
        monkeypatch.setattr(module, name, broken(getattr(module, name), old, new))
        with pytest.raises(AssertionError):
            test()
        monkeypatch.undo()


def test_the_time_that_is_left_is_of_all_scenarios():
    left = []
    both = preset(
        "quick", scenarios=("single-stream", "offline"), min_seconds=10.0, max_seconds=1e-9, launches=3
    )
    compare_live("nano", "nano", both, TEXTS, tell=lambda what, s: left.append(s), start=Machine(0).start)
    assert len(left) == 12
    assert left == sorted(left, reverse=True)
    assert left[0] > 2 * 10.0 + 12 * 2  # the queries, and two processes of a second for each pair
    assert left[-1] == pytest.approx(left[0] / 12)
