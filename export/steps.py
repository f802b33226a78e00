"""What is being done, and how long it took: for progress on a terminal and for the report."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


@dataclass
class Steps:
    """Times what is done and tells of it: `tell` gets each step's name when it starts, with its seconds when it ends."""

    tell: Callable[[str, float | None], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.tell(name, None)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.tell(name, self.seconds[name])
        log.info("%s: %.1f s", name, self.seconds[name])
