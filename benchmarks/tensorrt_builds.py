"""Engines that TensorRT-RTX builds without a GPU: seconds, size, memory, what the network multiplies in, what its graph loses.

    python -m benchmarks.tensorrt_builds --models nano b32

Whole models with random weights at the real shape, both towers, written with the Attention operator and without it. The graph of a
lower precision is converted and measured on made-up pictures first; then each build is a process of its own, so that its peak of
memory is the build's alone. Plans are removed once they were measured; bundles are kept in WORK. Nothing is run: there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# -> the entry of tests.families.models(), "" for the embedded bundle
MODELS = {"nano": "", "b32": "clip-B/32", "b16": "ViT-B-16-quickgelu", "siglip-b16": "siglip-B/16"}
KEPT = {"b32": ROOT / ".cache/end_to_end/bundle"}  # that benchmarks.end_to_end left, where it did
TARGETS = (("sm86",), ("sm89",), ("sm86", "sm89"))
BATCH = "1:8:32"


def main() -> None:
    """Parse, prepare, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "fp16", "bf16"], default=["fp32", "fp16"])
    parser.add_argument("--towers", nargs="+", choices=["image", "text"], default=["image", "text"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/tensorrt_builds")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/tensorrt_builds")
    parser.add_argument("--child", metavar="JSON", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_child(**json.loads(options.child))), flush=True)
        return
    if os.getloadavg()[0] > 0.5:
        print(f"the machine is busy (load {os.getloadavg()[0]:.1f}): seconds will be wrong", file=sys.stderr)
    options.work.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        _write(options.output, model, _measure(model, options))


def _measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.machine import describe
    from edgeclip.bundle import open_bundle

    where = _bundle(model, options.work)
    rows = []
    for variant in open_bundle(where).manifest.variants:
        if variant.tower in options.towers:
            for precision in options.precisions:
                rows += _builds(model, where, variant.id, precision, options)
    return {"machine": describe(), "tensorrt-rtx": _version(), "batch": BATCH, "rows": rows}


def _bundle(model: str, work: Path) -> str:
    """Its folder; written and exported in a process of its own, unless it is there."""
    if not MODELS[model]:
        return model
    folder = work / model / "bundle"
    if model in KEPT and KEPT[model].is_dir():
        folder = KEPT[model]
    if not folder.is_dir():
        print(f"{model}: write and export it", file=sys.stderr, flush=True)
        if "failed" in (found := _run({"task": "export", "name": MODELS[model], "folder": str(folder)})):
            raise SystemExit(f"{model}: {found['failed']}")
        shutil.rmtree(folder.parent / "source", ignore_errors=True)
    return str(folder)


def _builds(
    model: str, where: str, variant: str, precision: str, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One graph, for each of TARGETS."""
    rows = []
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        task = {
            "task": "build", "where": where, "variant": variant, "precision": precision, "threads": options.threads,
            "store": f"{scratch}/engines",
        }  # fmt: skip
        if precision != "fp32":
            _run({**task, "archs": TARGETS[0]})  # makes the graph
        for archs in TARGETS:
            row = {"model": model, "from": variant, "precision": precision, "for": ", ".join(archs)}
            row |= _run({**task, "archs": archs})
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


def _run(task: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own answers, or why it did not."""
    command = [sys.executable, "-m", "benchmarks.tensorrt_builds", "--child", json.dumps(task)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _child(task: str, **settings: Any) -> dict[str, Any]:
    return {"export": _export, "build": _build}[task](**settings)


def _export(name: str, folder: str) -> dict[str, Any]:
    from edgeclip.export.api import ExportSettings, export_bundle
    from edgeclip.models.sources import load_source
    from tests.families import models

    source = Path(folder).parent / "source"
    written = models()[name](source, "full")
    export_bundle(load_source(written.spec, **(written.load or {})), Path(folder), settings=ExportSettings())
    return {}


def _build(
    where: str, variant: str, precision: str, threads: int, store: str, archs: list[str]
) -> dict[str, Any]:
    import edgeclip

    bundle, folder = edgeclip.open_bundle(where), Path(store)
    settings = edgeclip.BuildSettings(
        precision=precision, variants=(variant,), batches=(BATCH,), archs=tuple(archs), on_shortfall="report", rebuild=True,
        output=folder,
    )  # fmt: skip
    try:
        (record,) = edgeclip.build_engines(bundle, "tensorrt-rtx", settings, threads=threads)
    except edgeclip.EdgeClipError as error:
        return {"failed": str(error)}
    network, fidelity = record.network, record.variant.fidelity
    for plan in folder.glob("*.engine"):
        plan.unlink()
    return {
        "engine": record.variant.id, "seconds": round(record.seconds, 2), "plan_mb": round(record.size / 1e6, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1), "layers": network.layers,
        "products": dict(network.products), "attention": network.attention, "unfused": network.unfused,
        "relative_distance": float(f"{fidelity.relative_distance:.3g}") if fidelity and record.provenance else None,
        "notes": list(record.notes),
    }  # fmt: skip


def _version() -> str:
    import tensorrt_rtx

    return str(tensorrt_rtx.__version__)


def _write(output: Path, model: str, found: dict[str, Any]) -> None:
    """Replace one model's figures in the file, and write the page again from all of them."""
    from benchmarks.machine import keep_figures

    known = keep_figures(output.with_suffix(".json"), model, found, MODELS)
    lines = [
        "# Engines built by TensorRT-RTX without a GPU", "",
        "Whole models with random weights at the real shape. Built, not run: there was no GPU. Products are the matrix products and "
        "convolutions of the parsed network by type; attention counts its operators, and those that no fused kernel is known for; the "
        "relative distance is the converted graph's to fp32 on the CPU. Memory is the peak of a process that builds one engine. "
        "Made by `python -m benchmarks.tensorrt_builds`.", "",
    ]  # fmt: skip
    for name, each in known.items():
        lines += _table(name, each)
    text = "\n".join(lines)
    output.with_suffix(".md").write_text(text)
    print(text)


def _table(name: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"## {name}, tensorrt-rtx {found['tensorrt-rtx']}, batches {found['batch']}", "",
        "| from | precision | for | build | plan | peak memory | layers | products | attention | relative distance |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        start = f"| {row['from']} | {row['precision']} | {row['for']} "
        if "failed" in row:
            lines.append(f"{start}| failed: {row['failed'].replace('|', '/')} | | | | | | |")
            continue
        products = ", ".join(f"{count} {kind}" for kind, count in row["products"].items())
        attention = (
            f"{row['attention']}, {row['unfused']} unfused" if row["unfused"] else str(row["attention"])
        )
        distance = "-" if row["relative_distance"] is None else f"{row['relative_distance']:.2g}"
        lines.append(
            f"{start}| {row['seconds']:.1f} s | {row['plan_mb']:.0f} MB | {row['peak_rss_mb']:.0f} MB | {row['layers']} | "
            f"{products} | {attention} | {distance} |"
        )
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    return [*lines, "", f"Machine: {machine}.", ""]


if __name__ == "__main__":
    main()
