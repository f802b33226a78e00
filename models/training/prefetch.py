"""Batches made ahead of time by threads, handed out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(make: Callable[[int], T], start: int, stop: int, workers: int) -> Iterator[T]:
    """make(start), make(start + 1), ... to `stop`, exclusive. Decoding and resizing release the interpreter, so threads do.

    Args:
        workers: threads; each is one batch ahead. 0: made when asked for.
    """
    if not workers:
        yield from map(make, range(start, stop))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="edgeclip-batches")
    try:
        waiting: deque[Future[T]] = deque()
        for step in range(start, stop):
            while len(waiting) <= workers and step + len(waiting) < stop:
                waiting.append(pool.submit(make, step + len(waiting)))
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
