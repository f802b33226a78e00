"""When a warm-up ends, by a clock that only queries move."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from edgeclip.bench import warmup
from edgeclip.bench.warmup import agree, warm_up
from tests.mutants import broken

MS = 1_000_000


class Machine:
    """Answers in as many ms as `pace` says for the k-th query and its sample."""

    def __init__(self, pace):
        self.now, self.pace, self.seen = 0, pace, []

    def query(self, samples):
        self.now += int(MS * self.pace(len(self.seen), samples[0]))
        self.seen.append(samples[0])

    def clock(self):
        return self.now

    def warm(self, min_seconds=60.0, of=warm_up):
        return of(self.query, lambda: ([i] for i in count()), min_seconds, self.clock)


def test_a_steady_machine_is_warm_after_a_second() -> None:
    found, median_ms = Machine(lambda k, i: 10).warm()
    assert found.steady
    assert median_ms == 10
    assert 1.0 <= found.seconds <= 1.26  # four windows of a quarter, and no more
    assert found.queries == round(100 * found.seconds)


def test_a_machine_that_settles_is_waited_for() -> None:
    machine = Machine(lambda k, i: 10 + 30 * 0.99**k)  # within 2 % from window to window at about k = 200
    found, median_ms = machine.warm()
    assert found.steady
    assert found.seconds > 2
    assert 10 < median_ms < 13


def test_a_machine_that_never_settles_is_given_up_after_ten_seconds() -> None:
    found, _ = Machine(lambda k, i: 10 * 1.005**k).warm()
    assert not found.steady
    assert 10 <= found.seconds < 11


@pytest.mark.parametrize("min_seconds", [2.0, 0.5])
def test_it_takes_at_most_three_tenths_of_the_measurement(min_seconds: float) -> None:
    found, _ = Machine(lambda k, i: 10 * 1.02**k).warm(min_seconds)
    assert not found.steady
    assert found.seconds <= 0.3 * min_seconds + 0.05
    steady, _ = Machine(lambda k, i: 1).warm(min_seconds)
    assert steady.steady
    assert 0.15 * min_seconds <= steady.seconds < 0.3 * min_seconds


def test_a_slow_model_makes_two_queries_at_least() -> None:
    found, median_ms = Machine(lambda k, i: 4000).warm(min_seconds=2)
    assert (found.queries, found.steady, median_ms) == (2, False, 4000)


def test_ten_queries_at_least_where_time_allows() -> None:
    found, _ = Machine(lambda k, i: 400).warm()
    assert found.steady
    assert found.queries >= 10


def test_every_window_makes_the_same_queries_so_that_pictures_do_not_pass_for_noise() -> None:
    machine = Machine(
        lambda k, i: 5 + i % 40
    )  # slower pictures come later: windows of other pictures would differ
    found, _ = machine.warm()
    assert found.steady
    assert found.seconds < 1.5
    assert machine.seen.count(0) >= 3


@pytest.mark.parametrize("spread", [0.05, 0.1])
def test_noise_is_no_trend(spread: float) -> None:
    """Of 40 launches on a machine with noise nearly all are warm at once, and nearly none while it still grows faster."""
    at_once, at_the_end = 0, 0
    for seed in range(40):
        noise = np.exp(spread * np.random.default_rng(seed).standard_normal(20_000))
        found, _ = Machine(lambda k, i, noise=noise: 6 * noise[k] ** 3).warm()
        at_once += found.steady and found.seconds < 1.8
        found, _ = Machine(lambda k, i, noise=noise: 6 * (1 + 9 * 0.97**k) * noise[k]).warm()
        at_the_end += 9 * 0.97**found.queries < 0.1
    assert at_once >= 38
    assert at_the_end >= 36


def test_windows_that_agree_within_two_percent_do_so_without_noise_too() -> None:
    assert agree([100] * 5, [101] * 5)
    assert not agree([100] * 5, [104] * 5)
    assert not agree([104] * 5, [100] * 5)


@pytest.mark.parametrize(
    ("old", "new", "machine"),
    [
        ("len(window) >= WINDOW_QUERIES and ", "", Machine(lambda k, i: 400)),
        ("settled(windows)", "True", Machine(lambda k, i: 10 + 30 * 0.99**k)),
        ("for samples in draws():", "for samples in kept:", Machine(lambda k, i: 5 + i % 40)),
        ("queries >= 2 and ", "", Machine(lambda k, i: 40_000)),
    ],
)
def test_planted_faults_are_caught(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, machine: Machine
) -> None:
    right, _ = Machine(machine.pace).warm()
    monkeypatch.setattr(warmup, "kept", ([i] for i in count()), raising=False)
    wrong, _ = machine.warm(of=broken(warm_up, old, new))
    assert wrong != right
