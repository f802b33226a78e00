"""Where the time of a call goes: the runtime's own code says when a part of it began and ended, to whoever listens.

    with listen() as spans:
        begun = perf_counter_ns()
        model.classify(picture, labels)
        shares(spans, begun, perf_counter_ns())  # {"decode": 812_000, "image tower": 3_104_000, ...}

A place in the code is `begun = stages.begin()` before and `stages.end(name, begun)` after; a context manager would read better and take three
times as long. While nobody listens, the pair takes 0.13 us; else 0.5 us (one core of a cloud machine).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from time import perf_counter_ns

Span = tuple[int, int, str]  # ns of perf_counter_ns when it began and ended, its name

# in the order of a call
STAGES = (
    "open",  # a tower, at its first use only
    "decode",  # bytes to upright RGB
    "preprocess",  # resized, cropped, normalised into the engine's array
    "tokenize",
    "copy in",  # to the GPU
    "image tower",
    "text tower",
    "copy out",
    "head",  # vectors of the labels, scores, ranking
)

_spans: list[Span] | None = None  # None: nobody listens


def begin() -> int:
    """A part begins: the time in ns, 0 where nobody listens."""
    return 0 if _spans is None else perf_counter_ns()


def end(name: str, begun: int) -> None:
    """It has ended. One that ends by an error is not heard of: its call has no result to be timed."""
    if begun and (spans := _spans) is not None:  # who listened may have stopped meanwhile
        spans.append((begun, perf_counter_ns(), name))


def listening() -> bool:
    """Whether parts are timed now: an engine that copies and computes at once then waits in between, so that each has a time."""
    return _spans is not None


@contextlib.contextmanager
def listen() -> Iterator[list[Span]]:
    """Gather the parts of all calls, of every thread, in the list that is given; whoever reads it may empty it.

    Raises:
        RuntimeError: somebody listens already.
    """
    global _spans
    if _spans is not None:
        raise RuntimeError("the stages of this process are being timed already")
    spans: list[Span] = []
    _spans = spans
    try:
        yield spans
    finally:
        _spans = None


def shares(spans: Sequence[Span], begun: int, ended: int) -> dict[str, int]:
    """How much of the time from `begun` to `ended` each part took, in ns; the rest belongs to none.

    At each moment the part that began last counts, whichever thread is in it. So none is counted twice: not copying inside the tower,
    nor an engine's own thread that somebody waits for, nor pictures that are decoded side by side.
    """
    edges = sorted({begun, ended, *(edge for span in spans for edge in span[:2] if begun < edge < ended)})
    found: dict[str, int] = {}
    for first, last in pairwise(edges):
        inside = [(b, -e, name) for b, e, name in spans if b <= first and e >= last]
        if inside:  # of two that began at once, the shorter lies within the longer
            name = max(inside)[2]
            found[name] = found.get(name, 0) + last - first
    return found
