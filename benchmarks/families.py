"""One picture and eight texts through models of several families: the library itself, a plain export of it, and edgeclip's graph.

    python -m benchmarks.families [NAME ...]

Whole models with random weights (tests/families). "library": transformers or open_clip, eager PyTorch. "plain export": the library's
own module through torch.onnx.export, run by onnxruntime, as one does without edgeclip. All three on the same inputs, taking turns
in one process with a rest between, with the same number of threads; the median of each, and its ratio to edgeclip's.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.machine import describe
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.models.sources import load_source
from edgeclip.runtime.engines import EngineOptions, open_engine, run
from tests.checkpoints import fixed_pixels
from tests.families import Written, models

ROOT = Path(__file__).parents[1]
NAMES = ("clip-B/32",)
TEXTS = [
    f"a photo of a {thing}" for thing in ("cat", "dog", "car", "train", "house", "tree", "river", "person")
]


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/families_latency")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    written, rows = models(), []
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            rows += _measure(name, written[name](Path(folder) / "source", "full"), Path(folder), options)
            print(rows[-1], file=sys.stderr, flush=True)
        gc.collect()
    _write(options.output, {"machine": describe(), "threads": options.threads, "rows": rows})


def _measure(name: str, theirs: Written, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    source = load_source(theirs.spec, **(theirs.load or {}))
    report = export_bundle(source, folder / "bundle", settings=ExportSettings(targets=("portable",)))
    rows = []
    for variant in report.bundle.manifest.variants:
        if variant.tower == "image":
            assert source.preprocessing is not None
            library, inputs = theirs.image, fixed_pixels(1, *source.preprocessing.size)
        else:
            from edgeclip.runtime.text import TextEncoder

            assert source.text is not None
            encoder = TextEncoder.open(report.bundle.path("tokenizer.json"), source.text)
            library, inputs = theirs.text, torch.from_numpy(encoder.encode(TEXTS).input_ids).long()
        assert library is not None
        engine = open_engine(
            "onnxruntime-cpu",
            report.bundle.path(variant.files[0]),
            variant,
            EngineOptions(threads=options.threads),
        )
        sizes = {
            size: n
            for size, n in zip(variant.inputs[0].shape, inputs.shape, strict=True)
            if isinstance(size, str)
        }
        slot = engine.slot(len(inputs), sizes)
        slot.inputs[variant.inputs[0].name][:] = inputs.numpy()
        ways: dict[str, Callable[[], object]] = {
            "edgeclip": lambda engine=engine, slot=slot: run(engine, slot),
            "library": torch.no_grad()(lambda library=library, inputs=inputs: library(inputs)),
        }
        plain = _plain_export(library, inputs, options.threads)
        if plain is not None:
            ways["plain export"] = plain
        medians = _medians(ways, options.rounds)
        rows.append(
            {
                "model": name,
                "tower": variant.tower,
                **{f"{way}, ms": round(ms, 1) for way, ms in medians.items()},
            }
        )
        engine.close()
    return rows


class _Module(torch.nn.Module):
    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x)


def _plain_export(
    library: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, threads: int
) -> Callable[[], object] | None:
    """None where PyTorch cannot export the library's module; said on stderr."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        try:
            program = torch.onnx.export(_Module(library).eval(), (inputs,), dynamo=True, verbose=False)
            assert program is not None
            program.save(str(path))
            session = onnxruntime.InferenceSession(str(path), settings)
        except Exception as error:
            print(f"no plain export: {str(error).splitlines()[0]}", file=sys.stderr)
            return None
    feed = {session.get_inputs()[0].name: inputs.numpy()}
    return lambda: session.run(None, feed)


# Threads of the one before go on spinning for a while, and would take a core from the next.
_REST_S = 0.1


def _medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, work in ways.items():
            time.sleep(_REST_S)
            start = time.perf_counter()
            work()
            if number >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(found)) for name, found in times.items()}


def _write(output: Path, found: dict[str, Any]) -> None:
    output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    columns = ("edgeclip, ms", "library, ms", "plain export, ms")
    lines = [
        "# One picture, eight texts: the library, a plain export of it, edgeclip's graph\n",
        f"Median, {found['threads']} threads, fp32, random weights, one run with all three taking turns. Texts: open_clip pads every text to its full length, as it always does; edgeclip runs causal towers at the longest text. "
        f"{', '.join(f'{name} {value}' for name, value in found['machine'].items())}. "
        "Made by `python -m benchmarks.families`.\n",
        "| Model | Tower | edgeclip | library | plain export |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        own, *others = (row.get(column) for column in columns)
        cells = [
            f"{own} ms",
            *("-" if other is None else f"{other} ms ({other / own:.2f}x)" for other in others),
        ]
        lines.append(f"| {row['model']} | {row['tower']} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
