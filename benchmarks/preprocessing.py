"""Where the time between JPEG bytes and the tower's pixels goes, and what fast decoding costs in agreement.

    python -m benchmarks.preprocessing --bundle .cache/end_to_end/bundle

One thread, each photograph of WORK once a round (benchmarks.end_to_end makes them). Differences are against exact decoding, in
levels of 255; the cosine is between embeddings of the two by the bundle's image tower.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import edgeclip
from benchmarks.machine import describe
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.images.decode import decode

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/end_to_end")
    parser.add_argument("--bundle", default=str(ROOT / ".cache/end_to_end/bundle"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/preprocessing")
    options = parser.parse_args()
    rows = []
    with edgeclip.load(options.bundle, threads=1) as model:
        for size in ("12 megapixels", "500 pixels"):
            files = [path.read_bytes() for path in sorted((options.work / size).glob("*.jpg"))]
            rows.append({"pictures": size, "count": len(files), **_measure(files, model, options.rounds)})
    _write(options.output, {"machine": describe(), "rows": rows})


def _measure(files: list[bytes], model: edgeclip.Model, rounds: int) -> dict[str, Any]:
    spec = model.manifest.preprocessing
    assert spec is not None
    fast, exact = Preprocessor(spec), Preprocessor(spec, decode="exact")
    slot = np.empty((2, 3, *spec.size), np.float32)
    stages: dict[str, Callable[[bytes], object]] = {
        "decode, reduced": lambda data: decode(data, at_least=fast._needed),
        "decode, whole": decode,
        "bytes to pixels, fast": lambda data: fast.into(data, slot[0]),
        "bytes to pixels, exact": lambda data: exact.into(data, slot[1]),
    }
    try:
        import torch

        import tests.torchvision_shim  # noqa: F401  (torchvision beside a torch that it was not built for)

        CLIPImageProcessor = import_module("transformers").CLIPImageProcessor

        torch.set_num_threads(1)
        processor = CLIPImageProcessor()
        stages["transformers, fast processor"] = lambda data: processor(
            images=Image.open(io.BytesIO(data)), return_tensors="np"
        )
    except ImportError:
        pass
    found: dict[str, Any] = {
        f"{name}, ms": round(_median(work, files, rounds), 2) for name, work in stages.items()
    }
    means, p99s, cosines = [], [], []
    for data in files:
        fast.into(data, slot[0])
        exact.into(data, slot[1])
        levels = np.abs(slot[0] - slot[1]) * np.array(spec.std)[:, None, None] * 255
        means.append(levels.mean())
        p99s.append(np.percentile(levels, 99))
        cosines.append(float(np.prod(model.embed_pixels(slot).astype(np.float64), axis=0).sum()))
    found["worst mean level"], found["worst p99 level"] = (
        round(float(max(means)), 3),
        round(float(max(p99s)), 2),
    )
    return {**found, "worst cosine": round(min(cosines), 6)}


def _median(work: Callable[[bytes], object], files: list[bytes], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        for data in files:
            start = time.perf_counter()
            work(data)
            times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def _write(output: Path, summary: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    names = [name for name in summary["rows"][0] if name != "pictures"]
    lines = ["# JPEG bytes to pixels", "", "One thread; written by `python -m benchmarks.preprocessing`.", ""]
    lines += [
        "| | " + " | ".join(row["pictures"] for row in summary["rows"]) + " |",
        "|---" * (1 + len(summary["rows"])) + "|",
    ]
    lines += [f"| {name} | " + " | ".join(str(row[name]) for row in summary["rows"]) + " |" for name in names]
    lines += [
        "",
        "Machine: " + ", ".join(f"{key} {value}" for key, value in summary["machine"].items()) + ".",
        "",
    ]
    output.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
