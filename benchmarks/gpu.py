"""An image tower on an NVIDIA GPU: edgeclip's engines beside PyTorch, eager and compiled, in one run on one machine.

    python -m benchmarks.gpu                                 ViT-B/32; add --models b32 l14 for both
    python -m benchmarks.gpu --only cuda torch --batches 1 32 --minutes 5

Needs an NVIDIA driver, a C compiler and Python's headers (torch.compile), and one environment; nothing is downloaded while it runs:

    pip install torch                                        with CUDA, of the driver's major version
    pip install '.[export]' transformers pytest
    pip uninstall -y onnxruntime
    pip install onnxruntime-gpu                              for a driver of CUDA 12: 'onnxruntime-gpu<1.27'; cuDNN is torch's
    pip install cuda-bindings tensorrt tensorrt-rtx-cu13     as you like, as is onnxruntime-ep-nv-tensorrt-rtx

What is absent becomes a row with the reason. Weights are random, at the real shape; source, bundle (proved on the CPU) and its fp16
graphs are made in WORK at the first run. A call is what a program sees: float32 pixels in host memory to float32 embeddings in host
memory, both copies included. All contestants are warm and take turns in an order that changes from round to round. Fidelity is to fp32
on the CPU. After half of --minutes no contestant is opened any more, after all of them nothing is started; what was left out is said.
The files are written anew after each step, so that a run that is killed leaves what it had, and one that crashes in somebody's library
says in whose: leave that one out with --only.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_contestants import CONTESTANTS, Array, Call, Contestant, Runner, on_cpu, prepare
from edgeclip.files import write_file

Rows = list[dict[str, Any]]

ROOT = Path(__file__).parents[1]
MODELS = ("b32", "b16", "l14")
TURN_S, WARM_UP = 0.3, 5  # of one contestant in one round; calls before
MAX_CALLS = 300  # of one turn
PACKAGES = (
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
    "triton",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, look for a GPU, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["b32"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the contestants' names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=32, help="on which fidelity is measured")
    parser.add_argument("--minutes", type=float, default=5.0, help="after which nothing more is started")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/gpu")
    parser.add_argument("-o", "--output", type=Path, help="default: benchmarks/results/gpu_<device>")
    options = parser.parse_args(arguments)
    device = describe()
    output = (
        options.output or ROOT / f"benchmarks/results/gpu_{re.sub(r'[^a-z0-9]+', '-', device['gpu'].lower())}"
    )
    deadline = time.monotonic() + 60 * options.minutes
    for model in options.models:
        folder = options.work / model
        prepare(folder, model)
        pixels = np.load(folder / "held.npy")[: options.pictures]
        chosen = [each for each in CONTESTANTS if any(part in each.name for part in options.only)]

        def keep(rows: Rows, model: str = model) -> None:
            write(output, model, {"machine": device, "rounds": options.rounds, "rows": rows})

        measure(chosen, folder, pixels, options.batches, options.rounds, deadline, keep)
    print(output.with_suffix(".md").read_text())


def describe() -> dict[str, str]:
    """The GPU, its driver, and the versions. Exits with one line where there is none."""
    from importlib import metadata

    from benchmarks.machine import describe as describe_machine
    from edgeclip.runtime.engines.nvidia import driver_cuda, has_gpu

    served = driver_cuda() if has_gpu() else None
    if served is None:
        raise SystemExit(
            "benchmarks.gpu: no NVIDIA GPU with a driver on this machine; see `edgeclip doctor`."
        )
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(
            f"benchmarks.gpu: torch {torch.__version__} does not see the GPU. Install torch with CUDA."
        )
    found = {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "driver_cuda": f"{served[0]}.{served[1]}",
        "torch_cuda": str(torch.version.cuda),
        **describe_machine(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def measure(
    contestants: Sequence[Contestant],
    folder: Path,
    pixels: Array,
    batches: Sequence[int],
    rounds: int,
    deadline: float,
    keep: Callable[[Rows], None] = lambda rows: None,
) -> Rows:
    """Open all, then time them in turns, batch by batch.

    Args:
        pixels: (N, 3, H, W) float32, on which fidelity is measured and of which the batches are made.
        deadline: of time.monotonic(), after which no batch is warmed up and no round begun; half of what is left may go on opening.
        keep: called with the rows so far, before each opening and after each batch.
    Returns:
        A row for each contestant, with p50 and p90 in ms and pictures a second for each batch; or why it has none.
    """
    rows: Rows = [{"contestant": each.name, "batches": {}} for each in contestants]
    runners: dict[int, Runner] = {}
    # an engine that is built takes minutes: the others are timed all the same
    opening = (time.monotonic() + deadline) / 2
    for i, each in enumerate(contestants):
        keep([*rows[:i], {**rows[i], "failed": "the run ended while this was opened"}, *rows[i + 1 :]])
        with _noted(rows[i]):
            _attempt(rows[i], opening, lambda i=i, each=each: runners.update({i: each.open(folder)}))
    reference = on_cpu(folder).prepare(pixels)() if runners else None
    for i, runner in list(runners.items()):
        rows[i]["uses"] = runner.uses
        fidelity = _attempt(rows[i], deadline, lambda runner=runner: _fidelity(runner, pixels, reference))
        rows[i].update(fidelity or {})
    keep(rows)
    for batch in batches:
        repeated = np.resize(pixels, (batch, *pixels.shape[1:]))
        calls: dict[int, tuple[Call, int]] = {}
        for i, runner in runners.items():
            found: dict[str, Any] = {}
            ready = _attempt(
                found, deadline, lambda runner=runner, repeated=repeated: _warm(runner.prepare(repeated))
            )
            rows[i]["batches"][str(batch)] = found
            if ready is not None:
                calls[i] = ready
        for i, times in _turns(calls, rounds, deadline).items():
            found = rows[i]["batches"][str(batch)]
            found.update({"failed": times} if isinstance(times, str) else _figures(times, batch))
        keep(rows)
    return rows


class _Ear(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@contextmanager
def _noted(row: dict[str, Any]) -> Iterator[None]:
    """What edgeclip warns of goes into the row: operators that ran on the CPU, fp32 that was rounded."""
    ear, log = _Ear(), logging.getLogger("edgeclip")
    log.addHandler(ear)
    try:
        yield
    finally:
        log.removeHandler(ear)
    if ear.heard:
        row["notes"] = ear.heard


def _attempt(row: dict[str, Any], deadline: float, work: Callable[[], Any]) -> Any:
    """What the work gives; where it fails, the reason goes into the row: other people's errors have no common base."""
    if time.monotonic() > deadline:
        row["failed"] = "left out: the time was up"
        return None
    try:
        return work()
    except Exception as error:
        row["failed"] = _reason(error)
        return None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _warm(call: Call) -> tuple[Call, int]:
    """-> the call, how many of it make a turn."""
    for _ in range(WARM_UP):
        call()
    start = time.perf_counter()
    call()
    return call, min(max(int(TURN_S / (time.perf_counter() - start)), 2), MAX_CALLS)


def _turns(
    calls: Mapping[int, tuple[Call, int]], rounds: int, deadline: float
) -> dict[int, list[float] | str]:
    """Milliseconds of each call, of whoever had a turn; of whoever failed, why. Each round begins with another one."""
    times: dict[int, list[float]] = {i: [] for i in calls}
    failed: dict[int, str] = {}
    order = list(calls)
    for number in range(rounds):
        if number and time.monotonic() > deadline:
            break
        first = number % max(len(order), 1)
        for i in order[first:] + order[:first]:
            call, count = calls[i]
            try:
                for _ in range(0 if i in failed else count):
                    start = time.perf_counter()
                    call()
                    times[i].append(1000 * (time.perf_counter() - start))
            except Exception as error:  # other people's errors have no common base
                failed[i] = _reason(error)
    return {**times, **failed}


def _figures(times: Sequence[float], batch: int) -> dict[str, float]:
    p50, p90 = np.percentile(times, [50, 90])
    return {
        "p50_ms": round(float(p50), 3),
        "p90_ms": round(float(p90), 3),
        "pictures_per_s": round(1000 * batch / float(p50), 1),
    }


def _fidelity(runner: Runner, pixels: Array, reference: Array) -> dict[str, float]:
    """Agreement with fp32 on the CPU, in float64: the smallest cosine, and the mean distance over that of different pictures."""
    found, want = (_unit(rows) for rows in (runner.prepare(pixels)(), reference))
    between = np.linalg.norm(want[:, None] - want[None], axis=2)[np.triu_indices(len(want), 1)]
    distance = np.linalg.norm(found - want, axis=1).mean() / np.median(between)
    return {
        "relative_distance": round(float(distance), 6),
        "cosine_min": round(float((found * want).sum(axis=1).min()), 7),
        "max_abs": float(f"{np.abs(found - want).max():.2e}"),
    }


def _unit(rows: Array) -> Array:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def write(output: Path, model: str, found: Mapping[str, Any]) -> None:
    """Add one model's figures to the two files, each whole or as it was; other models' stay."""
    path = output.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    every = {**(json.loads(path.read_text()) if path.exists() else {}), model: found}
    write_file(path, json.dumps(every, indent=1) + "\n")
    lines = ["# Image towers on a GPU", "", "Random weights at the real shape; host memory to host memory; written by `python -m benchmarks.gpu`.", ""]  # fmt: skip
    for name, one in every.items():
        lines += [f"## {name}", "", *_table(one["rows"]), ""]
        lines += [
            f"{one['rounds']} rounds. "
            + ", ".join(f"{key} {value}" for key, value in one["machine"].items())
            + ".",
            "",
        ]
    write_file(output.with_suffix(".md"), "\n".join(lines))


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    batches = list(dict.fromkeys(batch for row in rows for batch in row["batches"]))
    head = ["", *(f"batch {batch}: p50 | pictures/s" for batch in batches), "relative distance", "really ran"]
    lines = ["| " + " | ".join(head) + " |", "|---" * (3 + 2 * len(batches)) + "|"]
    for row in rows:
        cells = [row["contestant"]]
        for batch in batches:
            one = row["batches"].get(batch, {})
            cells += (
                [f"{one['p50_ms']:.2f} ms", f"{one['pictures_per_s']:.0f}"]
                if "p50_ms" in one
                else [one.get("failed", ""), ""]
            )
        said = [row[key] for key in ("uses", "failed") if key in row] + row.get("notes", [])
        cells += [str(row.get("relative_distance", "")), "; ".join(said)]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return lines


if __name__ == "__main__":
    faulthandler.enable()  # a library that crashes leaves a trace
    main()
