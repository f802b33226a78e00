"""How close building an index comes to the image tower alone.

    python -m benchmarks.index_build                       1,000 JPEGs of 500 pixels, ViT-B/32 in fp32 (.cache/end_to_end/bundle)
    python -m benchmarks.index_build -b nano --count 2000

The tower alone gets pixels that lie ready, in batches as the build makes them. Tower and build take turns, part by part, so that a machine that
slows down slows both; each build starts with an empty index and ends when everything is on disk. The ratio is of the summed times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import edgeclip
from benchmarks.machine import describe
from benchmarks.photographs import PHOTOGRAPHS, find_photographs, small
from edgeclip.runtime import stages
from edgeclip.runtime.index.build import BuildSettings, build_index

ROOT = Path(__file__).parents[1]
PART = 100  # pictures in a turn


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-b", "--bundle", default=str(ROOT / ".cache/end_to_end/bundle"))
    parser.add_argument("--images", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/index_build.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, edgeclip.load(options.bundle) as model:
        pictures = _pictures(options.images, Path(scratch) / "photos", options.count)
        found = _measure(model, pictures, Path(scratch), options.batch_size)
        found |= {
            "model": model.manifest.name,
            "batch_size": options.batch_size,
            "machine": describe(),
            "runs": str(model.info()),
        }
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def _pictures(source: Path, folder: Path, count: int) -> list[Path]:
    photographs = [small(path) for path in find_photographs(source)]
    folder.mkdir()
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(photographs[number % len(photographs)])
    return paths


def _measure(model: edgeclip.Model, pictures: list[Path], scratch: Path, batch_size: int) -> dict[str, Any]:
    height, width = model.manifest.preprocessing.size  # type: ignore[union-attr]
    pixels = np.random.default_rng(0).normal(size=(PART, 3, height, width)).astype(np.float32)
    model.warmup(text=False)
    tower = build = 0.0
    parts: dict[str, int] = {}
    for number, start in enumerate(range(0, len(pictures), PART)):
        some = pictures[start : start + PART]
        begun = time.perf_counter()
        model.embed_pixels(pixels[: len(some)], batch_size=batch_size)
        tower += time.perf_counter() - begun
        begun, first = time.perf_counter(), time.perf_counter_ns()
        with stages.listen() as spans:
            report = build_index(
                some, scratch / f"{number}.index", model, how=BuildSettings(batch_size=batch_size)
            )
        build += report.seconds
        assert report.added == len(some), report.failures
        for name, took in stages.shares(spans, first, first + round(report.seconds * 1e9)).items():
            parts[name] = parts.get(name, 0) + took
    count = len(pictures)
    return {
        "pictures": count,
        "tower_per_s": round(count / tower, 2),
        "build_per_s": round(count / build, 2),
        "ratio": round(tower / build, 3),
        "ms_a_picture": {name: round(took / count / 1e6, 2) for name, took in parts.items()},
    }


if __name__ == "__main__":
    main()
