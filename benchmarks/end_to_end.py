"""JPEG bytes to label: edgeclip beside transformers, plain onnxruntime and OpenVINO, on this machine, in one run.

    pip install --target .cache/peers --no-deps -r benchmarks/requirements.txt
    PYTHONPATH=.cache/peers python -m benchmarks.end_to_end

One process for each peer and round, one after another, in an order that changes from round to round. A process warms up on
photographs of its own, then classifies others, each once. The cold start is timed from before the process is started to its
first label, with files that the disk cache already holds; a peer without its package is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIZES = {"12 megapixels": (4, 24), "500 pixels": (6, 48)}  # name -> photographs for warming up, and timed


def main() -> None:
    """Parse, prepare, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".cache/end_to_end", help="where models and pictures are kept"
    )
    parser.add_argument("--bundle", type=Path, help="a bundle of WORK/checkpoint; default: export it now")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=Path, help="a folder of photographs")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/end_to_end")
    parser.add_argument("--child", nargs=2, metavar=("PEER", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.work, options.threads, *options.child)
        return
    from benchmarks.peers import PEERS, prepare

    if os.getloadavg()[0] > 0.5:
        print(
            f"the machine is busy (load {os.getloadavg()[0]:.1f}): the figures will be wrong", file=sys.stderr
        )
    options.work.mkdir(parents=True, exist_ok=True)
    prepare(options.work, options.bundle)
    _photographs(options.work, options.images)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    missing: dict[str, str] = {}
    for number in range(options.rounds):
        peers = [name for name in PEERS if name not in missing]
        for name in peers[number % len(peers) :] + peers[: number % len(peers)]:
            for size in (*SIZES, "cold"):
                print(f"round {number + 1}: {name}, {size}", file=sys.stderr, flush=True)
                found, error = _spawn(options.work, options.threads, name, size)
                if found is None:
                    missing[name] = error
                    break
                runs.setdefault(name, {}).setdefault(size, []).append(found)
    _write(options.output, _summary(runs, missing, options.threads, options.rounds))


def _spawn(work: Path, threads: int, peer: str, size: str) -> tuple[dict[str, Any] | None, str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "STARTED": repr(time.time()),
    }
    command = [
        sys.executable,
        "-m",
        "benchmarks.end_to_end",
        "--work",
        work,
        "--threads",
        str(threads),
        "--child",
        peer,
        size,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), ""


def _child(work: Path, threads: int, peer: str, size: str) -> None:
    from benchmarks.peers import PEERS

    if size == "cold":
        data = sorted((work / "500 pixels").glob("*.jpg"))[-1].read_bytes()
        label = PEERS[peer](work, threads)(data)
        print(json.dumps({"seconds": time.time() - float(os.environ["STARTED"]), "labels": [label]}))
        return
    files = [path.read_bytes() for path in sorted((work / size).glob("*.jpg"))]
    classify = PEERS[peer](work, threads)
    warm = SIZES[size][0]
    for data in files[:warm]:
        classify(data)
    times, labels = [], []
    for data in files[warm:]:
        start = time.perf_counter()
        labels.append(classify(data))
        times.append(1000 * (time.perf_counter() - start))
    print(json.dumps({"ms": times, "labels": labels}))


def _photographs(work: Path, folder: Path | None) -> None:
    from benchmarks.photographs import PHOTOGRAPHS, find_photographs, small, twelve_megapixels

    paths = find_photographs(folder or PHOTOGRAPHS)
    for size, (warm, timed) in SIZES.items():
        target = work / size
        target.mkdir(exist_ok=True)
        for i in range(warm + timed):
            file = target / f"{i:03}.jpg"
            if not file.exists():
                file.write_bytes(
                    small(paths[i % len(paths)]) if size == "500 pixels" else twelve_megapixels(paths, i)
                )


def _summary(runs: dict[str, Any], missing: dict[str, str], threads: int, rounds: int) -> dict[str, Any]:
    import numpy as np

    from benchmarks.machine import describe

    reference = runs.get("transformers", runs["edgeclip"])
    rows = []
    for name, sizes in runs.items():
        row: dict[str, Any] = {"peer": name}
        for size in SIZES:
            times = np.concatenate([run["ms"] for run in sizes[size]])
            same = np.mean(
                [a == b for a, b in zip(sizes[size][0]["labels"], reference[size][0]["labels"], strict=True)]
            )
            row[size] = {f"p{p}_ms": round(float(np.percentile(times, p)), 2) for p in (50, 90, 99)}
            row[size]["p50_by_round_ms"] = [round(float(np.median(run["ms"])), 2) for run in sizes[size]]
            row[size]["same_label_as_transformers"] = round(float(same), 3)
        row["cold_start_s"] = round(float(np.median([run["seconds"] for run in sizes["cold"]])), 3)
        rows.append(row)
    return {"machine": describe(), "threads": threads, "rounds": rounds, "rows": rows, "left_out": missing}


def _write(output: Path, summary: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    lines = [
        "# JPEG bytes to label",
        "",
        f"ViT-B/32 with random weights, fp32, 20 labels, {summary['threads']} threads, {summary['rounds']} rounds; "
        "written by `python -m benchmarks.end_to_end`.",
        "",
        "| | " + " | ".join(f"{size}: p50 | p90 | p99 | same label" for size in SIZES) + " | cold start |",
        "|---" * (2 + 4 * len(SIZES)) + "|",
    ]
    for row in summary["rows"]:
        cells = [
            f"{row[s]['p50_ms']:.1f} ms | {row[s]['p90_ms']:.1f} | {row[s]['p99_ms']:.1f} | {row[s]['same_label_as_transformers']:.0%}"
            for s in SIZES
        ]
        lines.append(f"| {row['peer']} | {' | '.join(cells)} | {row['cold_start_s']:.2f} s |")
    lines += ["", "Cold start: from starting the process to the first label of a 500-pixel photograph. The peers but transformers "
              "and edgeclip read ready label vectors there, as edgeclip does with a label pack; random weights make near ties of labels.", ""]  # fmt: skip
    lines += [f"Left out: {name} ({reason})." for name, reason in summary["left_out"].items()]
    lines += [
        "Machine: " + ", ".join(f"{key} {value}" for key, value in summary["machine"].items()) + ".",
        "",
    ]
    output.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
