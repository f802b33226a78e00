from __future__ import annotations

import math
from functools import cache
from itertools import permutations

import numpy as np
import pytest

from edgeclip.bench import difference as module
from edgeclip.bench.difference import Difference, difference, in_turns, pulse_at, student, units
from edgeclip.bench.report import Latencies, Pulse
from tests.bench.noise import launches, report_of
from tests.mutants import broken

MINUTE = {"quiet": 8, "noisy": 10}  # launches of 7 s and of 6 s: a scenario as `edgeclip bench` measures it
STEP = {"quiet": 2, "noisy": 6}
TIMES_OF_20 = 19


@cache
def pairs(name: str):
    """All pairs of reports that share no launch, either before the other: (A, B, B with every call slower by 10 %)."""
    recorded, size = launches(name), MINUTE[name]
    first = range(0, len(recorded) - size + 1, STEP[name])
    whole = {k: (report_of(recorded[k : k + size]), report_of(recorded[k : k + size], 1.1)) for k in first}
    return [(whole[i][0], *whole[j]) for i, j in permutations(first, 2) if abs(i - j) >= size]


def told(name: str, percent: float | None, *, felt: bool = True) -> tuple[float, float, float]:
    """Shares of the pairs: unchanged and called worse; slower and found so; slower and called better."""
    worse = found = better = 0
    for a, b, slow in pairs(name):
        a, b, slow = (one if felt else (one[0], None) for one in (a, b, slow))
        worse += difference(a, b, percent).ends[0] > 0
        change = difference(a, slow, percent).ends
        found, better = found + (change[0] > 0), better + (change[1] < 0)
    return tuple(count / len(pairs(name)) for count in (worse, found, better))


@pytest.mark.parametrize("name", ["quiet", "noisy"])
def test_a_slowdown_is_found_and_no_change_is_not_flagged(name):
    assert len(pairs(name)) >= 20
    worse, found, better = told(name, 50)
    assert worse <= 1 - TIMES_OF_20 / 20, f"{worse:.1%} of unchanged pairs are called worse"
    assert found >= TIMES_OF_20 / 20, f"{found:.1%} of slowdowns are found"
    assert better == 0


def test_without_the_pulse_neither_holds():
    worse, found, _ = told("noisy", 50, felt=False)
    assert found < 0.5
    assert worse > 0.05 or found < 0.3


def test_tails_may_be_undecided_but_not_wrong():
    worse, _, better = told("noisy", 99)
    assert (worse, better) == (0, 0)


def made(ms, launch_count=5, pulse=None, seed=0):
    """Launches of equal length, one query each 10 ms."""
    count = len(ms) // launch_count
    at = tuple(10 * k for _ in range(launch_count) for k in range(count))
    starts = tuple(k * count for k in range(launch_count))
    beats = None
    if pulse is not None:
        every = range(0, count, 20)
        where = [k * count + i for k in range(launch_count) for i in every]
        us = tuple(float(pulse[i]) for i in where)
        beats = Pulse(tuple(k * len(every) for k in range(launch_count)), tuple(at[i] for i in where), us)
    return Latencies(1, starts, at, tuple(map(float, ms)), ()), beats


def test_a_factor_is_recovered_and_the_interval_holds_it():
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(40):
        a, b = (
            rng.lognormal(2, 0.1, 1000) * np.repeat(np.exp(rng.normal(0, 0.02, 5)), 200) for _ in range(2)
        )
        found = difference(made(a), made(1.07 * b), 50)
        held += found.ends[0] <= 0.07 <= found.ends[1]
        assert not found.corrected
    assert held >= 35  # of 38


def test_a_slower_machine_is_taken_out():
    rng = np.random.default_rng(5)
    pulse = 200 * np.repeat(np.exp(rng.normal(0, 0.15, 50)), 20)
    a, b = pulse / 40 * rng.lognormal(0, 0.05, 1000), 1.4 * pulse / 40 * rng.lognormal(0, 0.05, 1000)
    slower = difference(made(a, pulse=pulse), made(b, pulse=pulse * 1.05), 50)
    assert slower.corrected
    assert slower.change == pytest.approx(1.4 / 1.05 - 1, abs=0.03)


def test_moments_that_were_alike_are_compared():
    """Half of A's time, and a tenth of B's, another program doubles every call but slows the pulse by half only."""
    rng = np.random.default_rng(6)
    runs = []
    for share in (0.5, 0.1):
        busy = np.tile(np.repeat([True, False], [int(200 * share), 200 - int(200 * share)]), 5)
        ms = np.where(busy, 2.0, 1.0) * rng.lognormal(1, 0.03, 1000)
        runs.append(made(ms, pulse=np.where(busy, 300.0, 200.0)))
    found = difference(*runs, 50)
    assert abs(found.change) < 0.03
    assert difference(*runs, None).change == pytest.approx(0, abs=0.03)


def test_a_pulse_that_explains_nothing_is_left_out():
    rng = np.random.default_rng(7)
    gpu = [rng.lognormal(1, 0.01, 1000) for _ in range(2)]
    pulse = [200 * np.repeat(np.exp(rng.normal(0, 0.3, 5)), 200) for _ in range(2)]
    found = difference(made(gpu[0], pulse=pulse[0]), made(1.02 * gpu[1], pulse=pulse[1]), 50)
    assert not found.corrected
    assert found.change == pytest.approx(0.02, abs=0.003)
    assert found.ends[0] > 0.01


def test_nothing_alike_is_undecided_unless_both_ways_agree():
    ms = np.full(1000, 5.0) + np.random.default_rng(1).random(1000)
    found = difference(made(ms, pulse=np.full(1000, 100.0)), made(ms, pulse=np.full(1000, 1000.0)), 50)
    assert not found.corrected
    assert found.change == 0
    assert found.ends[0] < -0.85
    slower = difference(made(ms, pulse=np.full(1000, 100.0)), made(20 * ms, pulse=np.full(1000, 200.0)), 50)
    assert slower.ends[0] > 5


def felt(pulses, luck, rng):
    """Launches of 200 queries, each with a pulse and a luck of its own."""
    starts, at = tuple(range(0, 200 * len(pulses), 200)), tuple(range(0, 2000, 10)) * len(pulses)
    us = np.repeat(np.float64(pulses), 200) * rng.lognormal(0, 0.05, 200 * len(pulses))
    ms = us * np.repeat(np.exp(rng.normal(0, luck, len(pulses))), 200)
    return Latencies(1, starts, at, tuple(ms.tolist()), ()), Pulse(starts, at, tuple(us.tolist()))


def test_one_launch_that_was_alike_is_not_believed():
    """Of A's five launches only the last saw the machine as B's did: leaving out the others would show no scatter at all."""
    rng = np.random.default_rng(11)
    found = difference(felt([100, 100, 100, 100, 200], 0.05, rng), felt([200] * 5, 0.05, rng), 50)
    assert not found.corrected
    assert found.resolution > 0.05


def test_three_launches_are_corrected_too():
    rng = np.random.default_rng(12)
    assert difference(felt([100, 110, 135], 0, rng), felt([105, 120, 130], 0, rng), 50).corrected


def test_one_launch_is_not_believed():
    rng = np.random.default_rng(8)
    ms = rng.lognormal(1, 0.01, 1000)
    one, five = (difference(made(ms, n), made(ms, n), 50) for n in (1, 5))
    assert one.resolution > 0.08 > 0.01 > five.resolution


def test_percentiles_that_too_few_queries_carry_are_not_compared():
    few = made(np.linspace(1, 2, 100))
    assert difference(few, few, 99) is None
    assert difference(few, few, 90) is not None


def test_leaving_out_equals_the_plain_way():
    rng = np.random.default_rng(9)
    logs, weights, unit = rng.normal(size=300), rng.random(300), np.repeat(np.arange(6), 50)
    got = module._left_out(logs, weights, unit, 50)
    for k, value in enumerate(got):
        kept = unit != k - 1
        order = np.argsort(logs[kept])
        until = np.cumsum(weights[kept][order])
        assert value == logs[kept][order][np.searchsorted(until, until[-1] / 2)]
    mean = module._left_out(logs, weights, unit, None)
    np.testing.assert_allclose(mean[0], np.log(np.average(np.exp(logs), weights=weights)), rtol=1e-12)


def test_units_are_launches_or_stretches_of_few():
    latencies, _ = made(np.ones(1000), 8)
    assert np.bincount(units(latencies)).tolist() == [125] * 8
    latencies, _ = made(np.ones(999), 3)
    assert np.bincount(units(latencies)).tolist() == [333] * 3
    latencies, _ = made(np.ones(1000), 2)
    assert len(np.bincount(units(latencies))) == 6
    assert (np.diff(units(latencies)) >= 0).all()


def test_the_pulse_before_a_query_is_its_own():
    latencies = Latencies(1, (0, 3), (0, 250, 600, 5, 300), (1.0,) * 5, ())
    pulse = Pulse((0, 3), (1, 250, 500, 0, 250), (10.0, 20.0, 30.0, 40.0, 50.0))
    assert pulse_at(latencies, pulse).tolist() == [10, 20, 30, 40, 50]


def test_turns_share_their_noise():
    """What slows both sides of a turn cancels; an interval that took them apart would be forty times as wide."""
    rng = np.random.default_rng(10)
    common = np.repeat(rng.normal(0, 0.3, 20), 25)
    a, b = (common + rng.normal(0, 0.02, 500) for _ in range(2))
    found = in_turns(a, b + math.log(1.1), np.repeat(np.arange(20), 25), None)
    assert found.change == pytest.approx(0.1, abs=0.01)
    assert found.resolution < 0.01


@pytest.mark.parametrize(
    ("freedom", "table"), [(2, 4.303), (3, 3.182), (4, 2.776), (8, 2.306), (18, 2.101), (1000, 1.962)]
)
def test_student_is_the_table(freedom, table):
    assert student(freedom) == pytest.approx(table, rel=0.035 if freedom == 2 else 0.01)


def test_a_difference_reads_both_ways():
    found = Difference(math.log(1.1), math.log(1.05), corrected=False)
    assert found.change == pytest.approx(0.1)
    assert found.ends == (pytest.approx(1.1 / 1.05 - 1), pytest.approx(1.1 * 1.05 - 1))
    assert found.resolution == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("name", "old", "new", "test"),
    [
        ("_alike", "reversed(counts)", "counts", test_moments_that_were_alike_are_compared),
        ("variance", "(len(without) - 1) / len(without)", "1 / len(without)", test_a_factor_is_recovered_and_the_interval_holds_it),
        ("pulse_at", 'side="right"', 'side="left"', test_the_pulse_before_a_query_is_its_own),
        ("_left_out", "until[:, -1:]", "len(logs)", test_leaving_out_equals_the_plain_way),
    ],
)  # fmt: skip
def test_planted_faults_are_caught(monkeypatch, name, old, new, test):
    mutant = broken(getattr(module, name), old, new)
    monkeypatch.setattr(module, name, mutant)
    monkeypatch.setitem(globals(), name, mutant)
    with pytest.raises(AssertionError):
        test()
