"""The record of a run: one JSON object a line, appended as steps are done, and the clock for its figures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeclip.files import write_file


class Metrics:
    """`metrics.jsonl`. What a killed run wrote after its last checkpoint is taken back when it is resumed."""

    def __init__(self, path: Path, step: int) -> None:
        """`step`: steps done; later records are dropped."""
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
            write_file(path, "".join(line + "\n" for line in kept))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", buffering=1)  # a line at a time, so that a kill costs one line at most

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it has a "step"."""
        self._stream.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class Clock:
    """Pairs a second, and the share of the time spent waiting for batches."""

    def __init__(self) -> None:
        self.pairs, self._waited, self._since = 0, 0.0, time.monotonic()

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Hand out the batches, timing each wait."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self._waited += time.monotonic() - asked
            yield batch

    def lap(self) -> dict[str, float]:
        """Figures since the last call."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        figures = {
            "pairs_per_s": round(self.pairs / seconds, 2),
            "waiting_share": round(self._waited / seconds, 4),
        }
        self.pairs, self._waited, self._since = 0, 0.0, now
        return figures


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line that was cut off
        return float("inf")
