"""Resident memory of a baked classifier, process and all, as a user's program has it.

    python -m benchmarks.baked_memory BUNDLE PICTURES [--labels 1000] [--precision int8] [-o RESULTS]

BUNDLE: a bundle with both towers. Labels with made-up names are embedded by it and baked in; with `--precision` its image tower is
converted first, calibrated on PICTURES (a folder). Then a fresh Python loads the result, classifies one picture, ten more, and
says what the system counts for it: VmHWM is the most that it ever held, VmRSS what it holds now, RssAnon the part that is no
mapped file and cannot be dropped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import edgeclip
from benchmarks.machine import describe
from edgeclip.bundle import Bundle, open_bundle
from edgeclip.export.bake import bake
from edgeclip.export.derive import NewVariant, derive_bundle, read_graph
from edgeclip.export.precision import METHODS, Request, convert
from edgeclip.runtime.images import preprocess

ROOT = Path(__file__).parents[1]
GOAL_MB = 350  # of a baked 1,000-label ViT-B/32
CALIBRATION = 16  # pictures

PROGRAM = """
import sys
steps = []
def note(step):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    steps.append({"step": step, **{key: int(lines[key].split()[0]) / 1024 for key in ("VmHWM", "VmRSS", "RssAnon")}})
note("bare Python")
import edgeclip
model = edgeclip.load(sys.argv[1], threads=int(sys.argv[2]))
note("load")
result = model.classify(sys.argv[3])
note("classify one")
for path in sys.argv[4:]:
    model.classify(path)
note("classify ten more")
import json
print(json.dumps({"steps": steps, "labels": len(result.labels), "info": str(model.info())}))
"""


def main() -> None:
    """Bake, measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--precision", choices=("fp32", *METHODS), nargs="+", default=["fp32", "int8"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/baked_memory")
    options = parser.parse_args()
    pictures = sorted(
        path for path in options.pictures.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    source, rows = open_bundle(options.bundle), []
    with edgeclip.load(source, threads=options.threads) as model:
        pack = model.make_labels([f"thing number {i}" for i in range(options.labels)])
    for precision in options.precision:
        with tempfile.TemporaryDirectory() as folder:
            made = source if precision == "fp32" else lower(source, precision, pictures, Path(folder) / "low")
            baked = bake(made, Path(folder) / "baked", pack, drop_text=True, only_heads=True).bundle
            rows.append({"precision": precision, **measure(baked.root, pictures, options.threads)})
            print(rows[-1], file=sys.stderr, flush=True)
    _write(options.output, {"machine": describe(), "threads": options.threads, "rows": rows})


def measure(bundle: Path, pictures: list[Path], threads: int) -> dict[str, Any]:
    """What a fresh Python says of itself after it classified the first pictures. Sizes in MiB."""
    command = [sys.executable, "-c", PROGRAM, str(bundle), str(threads), *map(str, pictures[:11])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    size = sum(entry.size for entry in open_bundle(bundle).manifest.files.values())
    return {"files_mb": round(size / 1e6, 1), **json.loads(done.stdout)}


def lower(bundle: Bundle, precision: str, pictures: list[Path], output: Path) -> Bundle:
    """The bundle with its preferred image variant in another precision in front."""
    base, spec = bundle.manifest.variants_of("image")[0], bundle.manifest.preprocessing
    assert spec is not None
    pixels = np.stack([preprocess(path, spec) for path in pictures[:CALIBRATION]])
    found = convert(read_graph(bundle, base), precision, Request(inputs=pixels))
    axes = replace(
        base.axes,
        precision=found.method.precision,
        activations=found.method.activations,
        opset=found.model.opset_imports[""],
    )
    return derive_bundle(
        bundle,
        output,
        [NewVariant(replace(base, id=axes.name("image"), axes=axes, fidelity=None), found.model)],
    )


def _write(output: Path, report: dict[str, Any]) -> None:
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [
        "# Resident memory of a baked classifier",
        "",
        f"Made by `python -m benchmarks.baked_memory`, {report['threads']} threads, a fresh process for each line; MiB as the system "
        f"counts them. Goal at 1,000 labels and the shape of ViT-B/32: under {GOAL_MB} MB. Weights may be random: they take the same room.",
        "",
        "| precision | labels | files, MB | at most (VmHWM) | after one (VmRSS) | after eleven | of it not mapped files |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        one, last = row["steps"][2:]
        lines.append(
            f"| {row['precision']} | {row['labels']} | {row['files_mb']} | {last['VmHWM']:.0f} | {one['VmRSS']:.0f} "
            f"| {last['VmRSS']:.0f} | {last['RssAnon']:.0f} |"
        )
    lines += ["", ", ".join(f"{key} {value}" for key, value in report["machine"].items())]
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
