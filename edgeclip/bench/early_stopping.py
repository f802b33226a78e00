"""How slow a percentile can be, with 99 % confidence, from however many queries there were: MLPerf's early stopping.

Of n queries each is slower than the true percentile p with probability 1 - p. Were the bound below the percentile, so few slow ones as
are seen above it would come about in less than 1 % of all runs. To trust the plain percentile, MLPerf asks for 24,576
queries at p90 and 270,336 at p99; the bound needs 64 and 662, and comes down to the percentile as more are made.

Source: MLPerf inference policies, "Early stopping criterion"; LoadGen's own figures are compared in tests and in benchmarks/loadgen.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, lgamma, log, sqrt

from edgeclip.bench.report import EarlyStopping

CONFIDENCE = 0.99


def estimate(sorted_ms: Sequence[float], percentile: float, confidence: float = CONFIDENCE) -> EarlyStopping:
    """The bound of a percentile.

    Args:
        sorted_ms: (N,) latencies, ascending.
        percentile: between 0 and 100.
        confidence: that the true percentile is not above the bound, 0-1.
    """
    queries, needed = len(sorted_ms), queries_needed(percentile, confidence)
    if queries < needed:
        return EarlyStopping(percentile, None, queries, needed, 0)
    over = most_over(queries, 1 - percentile / 100, 1 - confidence)
    return EarlyStopping(percentile, float(sorted_ms[queries - over]), queries, needed, over - 1)


def queries_needed(percentile: float, confidence: float = CONFIDENCE) -> int:
    """The fewest queries that give a bound: with one slow one among them."""
    queries = 2
    while most_over(queries, 1 - percentile / 100, 1 - confidence) < 1:
        queries += 1
    return queries


def most_over(queries: int, share: float, risk: float) -> int:
    """The largest t for which "t or fewer of `queries` are slow" has a probability below `risk`; -1 if there is none.

    Args:
        share: probability that a query is slow.
    """
    # what lies more than twelve deviations below the mean has a probability below 1e-30
    over = max(0, int(queries * share - 12 * sqrt(queries * share * (1 - share))))
    odds = share / (1 - share)
    term = exp(
        lgamma(queries + 1)
        - lgamma(over + 1)
        - lgamma(queries - over + 1)
        + over * log(share)
        + (queries - over) * log(1 - share)
    )
    below = 0.0
    while over <= queries and (below := below + term) < risk:
        term *= odds * (queries - over) / (over + 1)
        over += 1
    return over - 1
