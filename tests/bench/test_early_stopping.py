"""The bound of a percentile against MLPerf's LoadGen, against exact binomials, and against what it promises."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np
import pytest

from edgeclip.bench import early_stopping
from edgeclip.bench.early_stopping import estimate, most_over, queries_needed
from tests.mutants import broken

# queries -> how many of the slowest LoadGen 6.0.17 says that it "would discard"; single stream is p90, multi stream p99
LOADGEN = {
    90: {64: 0, 65: 0, 100: 2, 200: 9, 500: 33, 1000: 77, 5000: 449, 24_576: 2347},
    99: {662: 0, 1000: 1, 2000: 8, 5000: 32, 24_576: 208, 50_000: 447},
}
TABLE = [(p, n, discarded) for p, rows in LOADGEN.items() for n, discarded in rows.items()]


@pytest.mark.parametrize(("percentile", "queries", "discarded"), TABLE)
def test_as_many_are_discarded_as_by_loadgen(percentile: int, queries: int, discarded: int) -> None:
    found = estimate(range(queries), percentile)
    assert found.discarded == discarded
    assert found.ms == queries - 1 - discarded  # the slowest that is left
    assert found.queries == queries


@pytest.mark.parametrize(
    ("percentile", "needed"), [(90, 64), (99, 662)]
)  # LoadGen: "Need to process at least"
def test_below_that_many_queries_nothing_is_said(percentile: int, needed: int) -> None:
    assert queries_needed(percentile) == needed
    assert estimate(range(needed - 1), percentile).ms is None
    assert estimate(range(needed), percentile).ms == needed - 1


@pytest.mark.parametrize("share", [Fraction(1, 10), Fraction(1, 100), Fraction(1, 2)])
def test_binomials_are_exact(share: Fraction) -> None:
    for queries in (1, 2, 44, 63, 64, 129, 459, 662, 1201):
        below, over = Fraction(0), -1
        while over < queries:
            term = comb(queries, over + 1) * share ** (over + 1) * (1 - share) ** (queries - over - 1)
            if below + term >= Fraction(1, 100):
                break
            below, over = below + term, over + 1
        assert most_over(queries, float(share), 0.01) == over, queries


def test_the_percentile_is_above_the_bound_in_one_run_of_a_hundred() -> None:
    runs, queries, truth = 4000, 400, -np.log(0.1)  # p90 of an exponential
    rng = np.random.default_rng(3)
    drawn = np.sort(rng.exponential(size=(runs, queries)), axis=1)
    missed = np.mean([estimate(row.tolist(), 90).ms < truth for row in drawn[:200]])
    assert missed <= 0.02
    over = estimate(range(queries), 90).discarded + 1
    # at most 1 % by construction, and not much less: a bound that is needlessly high would miss hardly ever
    assert 0.001 < np.mean(drawn[:, queries - over] < truth) < 0.01


def test_many_queries_take_no_time() -> None:
    ms = list(range(300_000))

    def once() -> float:
        start = time.thread_time()
        estimate(ms, 90)
        estimate(ms, 99)
        return time.thread_time() - start

    assert min(once() for _ in range(3)) < 0.05  # 0.007 here


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        (most_over, "return over - 1", "return over"),
        (most_over, "(queries - over) / (over + 1)", "(queries - over) / over if over else 1"),
        (most_over, "- 12 * sqrt", "- 1 * sqrt"),  # begins in the middle of the tail
        (estimate, "sorted_ms[queries - over]", "sorted_ms[queries - over - 1]"),
        (estimate, "1 - percentile / 100", "0.1"),
    ],
)
def test_planted_faults_are_caught(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], old: str, new: str
) -> None:
    monkeypatch.setattr(early_stopping, function.__name__, broken(function, old, new))
    caught = [
        (p, n)
        for p, n, discarded in TABLE
        if (found := early_stopping.estimate(range(n), p)).discarded != discarded
        or found.ms != n - 1 - discarded
    ]
    assert caught
