"""JSON Schemas of the files that `edgeclip bench` writes, made from their dataclasses: programs in other languages read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeclip.bench.cells import Matrix
from edgeclip.bench.comparison import Comparison
from edgeclip.bench.reading import FORMATS
from edgeclip.bench.report import Report
from edgeclip.bundle.schema import file_schema

# published file in docs/ -> what it describes
PUBLISHED: Mapping[str, tuple[type, str]] = {
    "bench.schema.json": (Report, "edgeclip latency report"),
    "bench-matrix.schema.json": (Matrix, "edgeclip latency matrix"),
    "bench-comparison.schema.json": (Comparison, "edgeclip latency comparison"),
}


def bench_schema(file: str) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one entry of `PUBLISHED`."""
    cls, title = PUBLISHED[file]
    return file_schema(cls, *FORMATS[cls], title)


if __name__ == "__main__":
    import json
    import sys
    from pathlib import Path

    for file in PUBLISHED:
        (Path(sys.argv[1]) / file).write_text(
            json.dumps(bench_schema(file), indent=1) + "\n", encoding="utf-8"
        )
