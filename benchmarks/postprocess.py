"""From a detector's logits to detections: how long it takes, beside the suppression of supervision and OpenCV.

    python -m benchmarks.postprocess
    python -m benchmarks.postprocess --regions 576 --labels 20 --rounds 200 --write benchmarks/results/postprocess.json

No model runs: boxes and logits are made up, on a grid as a detector has it. "few" is what a threshold of 0.1 lets through of labels that
are mostly absent; "most" and "all" are bad cases, where nearly every pair of region and label, or every one, passes. The others' suppression
gets the same candidates, the best 1,000, and keeps all that it may; the runtime's own stops at 300. Cases take turns, so that a busy
machine slows all alike; "cpu" is the time of the thread, which another program's work lengthens less than "p50" and "p90".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from edgeclip.bundle import Preprocessing
from edgeclip.runtime.detect.nms import nms
from edgeclip.runtime.detect.postprocess import Candidates, Rules, choose, find
from edgeclip.runtime.detect.proposals import Regions

SIDE = 960  # of the detector's input, pixels
SIZE = (1440, 1440)  # (H, W) of the picture; a square one has no padding, whose regions are dropped at once
PAD = Preprocessing((SIDE, SIDE), "pad", "bilinear", (0.5,) * 3, (0.5,) * 3, pad_anchor="top_left")
CASES = {"few": (-6.0, 0.1), "most": (0.0, 0.1), "all": (0.0, 0.0)}  # mean of the logits, threshold


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--regions", type=int, default=3600)
    parser.add_argument("--labels", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--write", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    outputs = {name: made_up(arguments.regions, arguments.labels, mean) for name, (mean, _) in CASES.items()}
    calls: dict[str, Callable[[], Any]] = {}
    passed = {}
    for name, (_, threshold) in CASES.items():
        for kind, agnostic, objectness in (
            ("per class", False, False),
            ("agnostic", True, False),
            ("objectness", False, True),
        ):
            rules = Rules(np.full(arguments.labels, threshold, np.float32), 0.5, agnostic, 300, objectness)
            calls[f"{name}, {kind}"] = whole(outputs[name], rules)
            if kind == "per class":
                found, passed[name] = candidates(outputs[name], rules)
                calls.update({f"{name}, {who}": call for who, call in suppressions(found).items()})
    figures = timed(calls, arguments.rounds)
    print(f"{arguments.regions} regions x {arguments.labels} labels; {describe()}")
    print("pairs above the threshold: " + ", ".join(f"{name} {count}" for name, count in passed.items()))
    keys = ("p50_ms", "p90_ms", "cpu_p50_ms", "cpu_best_ms")
    print(f"{'':30}" + "".join(f"{key:>13}" for key in keys))
    for name, row in figures.items():
        print(f"{name:30}" + "".join(f"{row[key]:13.2f}" for key in keys))
    if arguments.write:
        result = {
            "machine": describe(), "regions": arguments.regions, "labels": arguments.labels, "passed": passed, "cases": figures,
        }  # fmt: skip
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(json.dumps(result, indent=1) + "\n")


def made_up(regions: int, labels: int, mean: float) -> dict[str, Any]:
    """A detector's outputs: boxes of 2 to 30 % of the input around a grid, logits around `mean`."""
    random = np.random.default_rng(0)
    grid = round(regions**0.5)
    y, x = np.divmod(np.arange(regions), grid)
    centres, half = (np.stack([x, y], axis=-1) + 0.5) / grid, random.uniform(0.01, 0.15, (regions, 2))
    return {
        "boxes": np.concatenate([centres - half, centres + half], axis=1).astype(np.float32),
        "logits": random.normal(mean, 2, (regions, labels)).astype(np.float32),
        "objectness": random.random(regions).astype(np.float32),
    }


def whole(outputs: dict[str, Any], rules: Rules) -> Callable[[], Any]:
    """All that follows the graph: boxes onto the picture, thresholds, candidates, suppression."""
    names = tuple(str(i) for i in range(outputs["logits"].shape[1]))

    def call() -> Any:
        seen = Regions.of(outputs, PAD, SIZE)
        look = partial(choose, seen.rows["logits"], seen.boxes, seen.objectness, rules)
        return find(look, names, seen.size, rules)

    return call


def candidates(outputs: dict[str, Any], rules: Rules) -> tuple[Candidates, int]:
    """What goes into suppression, and how many pairs passed the threshold."""
    seen = Regions.of(outputs, PAD, SIZE)
    scores = 1 / (1 + np.exp(-seen.rows["logits"].astype(np.float64)))
    return choose(seen.rows["logits"], seen.boxes, None, rules), int((scores >= rules.thresholds).sum())


def suppressions(found: Candidates) -> dict[str, Callable[[], Any]]:
    """The same suppression by class of each library that is installed."""
    calls: dict[str, Callable[[], Any]] = {
        "NMS: edgeclip": lambda: nms(found.boxes, found.scores, found.labels, 0.5),
    }
    try:
        from supervision.detection.utils.iou_and_nms import box_non_max_suppression

        columns = np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None]], axis=1)
        calls["NMS: supervision"] = lambda: box_non_max_suppression(columns, 0.5)
    except ImportError:
        print("supervision is not installed: left out")
    try:
        import cv2

        corners = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
        rows = corners.astype(np.float64).tolist(), found.scores.tolist(), found.labels.tolist()
        calls["NMS: cv2 (lists made ahead)"] = lambda: cv2.dnn.NMSBoxesBatched(*rows, 0.0, 0.5)
    except ImportError:
        print("OpenCV is not installed: left out")
    return calls


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, in turns: of the clock on the wall, and of this thread's CPU."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for i in range(rounds + 3):
        for name, call in calls.items():
            begun, used = time.perf_counter(), time.thread_time()
            call()
            if i >= 3:
                times[name].append((time.perf_counter() - begun, time.thread_time() - used))
    found = {}
    for name, rows in times.items():
        wall, cpu = 1000 * np.array(rows).T
        found[name] = {
            "p50_ms": float(np.median(wall)),
            "p90_ms": float(np.percentile(wall, 90)),
            "cpu_p50_ms": float(np.median(cpu)),
            "cpu_best_ms": float(cpu.min()),
        }
    return found


if __name__ == "__main__":
    main()
