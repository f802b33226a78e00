"""How much faster and smaller an image tower gets, and how far from itself: edgeclip beside onnxruntime, OpenVINO and PyTorch.

    pip install --target .cache/peers --no-deps -r benchmarks/requirements.txt
    PYTHONPATH=.cache/peers python -m benchmarks.compression --models b32 b16

Whole towers with random weights at the real shape, one picture a call. Every contestant is a process of its own that waits without
work until it is its turn; they take turns in an order that changes from round to round, with a rest between. The figures are medians;
fidelity is to the plain export in onnxruntime, on pictures that no calibration saw. A contestant that fails becomes a row with its
reason. Graphs are kept in WORK/<model>, so that a second run starts at once; results of models that are not asked for stay in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
REST_S = 0.1  # threads of the one before go on spinning for a while, and would take a core from the next
WARM_UP = 4  # calls
PATIENCE_S = 1800  # of one answer: torch.compile of a large tower takes minutes


def main() -> None:
    """Parse, prepare, measure, write."""
    from benchmarks.contestants import MODELS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--only", nargs="+", default=[""], help="parts of the contestants' names, besides the first"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--merge", type=int, nargs="+", default=[8, 16], help="tokens merged away in each block"
    )
    parser.add_argument("--pictures", type=int, default=32, help="on which fidelity is measured")
    parser.add_argument(
        "--prepare-only", action="store_true", help="write every contestant's files, time nothing"
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/compression")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/compression")
    parser.add_argument("--child", nargs=3, metavar=("TASK", "MODEL", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options, *options.child)
        return
    if os.getloadavg()[0] > 0.5 and not options.prepare_only:
        print(
            f"the machine is busy (load {os.getloadavg()[0]:.1f}): the figures will be wrong", file=sys.stderr
        )
    for model in options.models:
        found = _measure(model, options)
        if not options.prepare_only:
            _write(options.output, model, found)


def _measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.contestants import contestants
    from benchmarks.machine import describe
    from edgeclip.runtime.cpu import cpu_flags, saturates

    names = [each.name for each in contestants(model, tuple(options.merge))]
    names = [name for i, name in enumerate(names) if i == 0 or any(part in name for part in options.only)]
    rows: dict[str, dict[str, Any]] = {name: {"contestant": name} for name in names}
    _Process(options, "source", model, "").answer()
    for name in names:  # one process each: a large model's memory goes back when it ends
        _say(f"{model}: {name}: files")
        _attempt(rows[name], lambda name=name: _Process(options, "make", model, name).answer())
    if options.prepare_only:
        return {}
    processes: dict[str, _Process] = {}
    for name in names:
        if "failed" not in rows[name]:
            _say(f"{model}: {name}: open, warm up, compare")
            processes[name] = _Process(options, "run", model, name)
            _attempt(rows[name], processes[name].answer)
            _attempt(rows[name], lambda name=name: processes[name].ask("rows"))
    machine = describe()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        _say(f"{model}: round {number + 1} of {options.rounds}")
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if "failed" not in rows[name]:
                time.sleep(REST_S)
                found: dict[str, Any] = {}
                _attempt(found, lambda name=name: processes[name].ask("time"))
                rows[name] |= {"failed": found["failed"]} if "failed" in found else {}
                times[name] += [found["ms"]] if "ms" in found else []
    for process in processes.values():
        process.close()
    return {
        "machine": {**machine, "flags": " ".join(cpu_flags()), "saturates": str(saturates())},
        "threads": options.threads,
        "rounds": options.rounds,
        "rows": _summary(rows, times, options.work / model),
    }


def _summary(
    rows: dict[str, dict[str, Any]], times: dict[str, list[float]], folder: Path
) -> list[dict[str, Any]]:
    """Medians, ratios to the first row and fidelity to it. Ratios are of medians: all took turns, so a slow spell hits all."""
    from edgeclip.runtime.fidelity import cosine, relative_distance

    first, *_ = rows
    for name, row in rows.items():
        if "failed" in row:
            continue
        row["p50_ms"] = round(float(np.median(times[name])), 2)
        row["p90_ms"] = round(float(np.percentile(times[name], 90)), 2)
        if "failed" not in rows[first]:
            row["times_faster"] = round(float(np.median(times[first]) / np.median(times[name])), 2)
            a, b = (_unit(np.load(folder / rows[each]["rows"])) for each in (first, name))
            same = np.array_equal(a, b)
            row["relative_distance"] = 0.0 if same else float(f"{relative_distance(a, b):.3g}")
            row["cosine_min"] = 1.0 if same else round(float(cosine(a, b).min()), 6)
    for row in rows.values():
        row.pop("rows", None)
    return list(rows.values())


def _unit(rows: Any) -> Any:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _attempt(row: dict[str, Any], work: Any) -> None:
    """Add what comes to the row, or why nothing came."""
    if "failed" in row:
        return
    try:
        row |= work()
    except RuntimeError as error:
        row["failed"] = str(error)
        _say(f"failed: {error}")


class _Process:
    """One contestant, which answers each line with one JSON object."""

    def __init__(self, options: argparse.Namespace, task: str, model: str, name: str) -> None:
        self.log = options.work / model / f"{task} {name}.log".replace(" .", ".")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, "-m", "benchmarks.compression", "--work", options.work, "--threads", options.threads,
            "--pictures", options.pictures, "--merge", *options.merge, "--child", task, model, name,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
        self.errors = self.log.open("w+")
        self.unread = b""
        self.process = subprocess.Popen(
            [str(word) for word in command], cwd=ROOT, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.errors, bufsize=0,
        )  # fmt: skip

    def ask(self, what: str) -> dict[str, Any]:
        """Raises RuntimeError with the last line that a failed process wrote."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: the answer says why
            self.process.stdin.write(f"{what}\n".encode())
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next JSON object on its output; other lines are passed over. Raises RuntimeError as `ask` does."""
        assert self.process.stdout is not None
        end = time.monotonic() + PATIENCE_S
        while True:
            line, whole, rest = self.unread.partition(b"\n")
            if whole:
                self.unread = rest
                if line.startswith(b"{"):
                    found: dict[str, Any] = json.loads(line)
                    return found
                continue
            if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                break
            if not (more := self.process.stdout.read(1 << 16)):
                break
            self.unread += more
        self.process.kill()
        code = self.process.wait()
        self.errors.seek(0)
        said = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
        raise RuntimeError(said[-1][:300] if said else f"no answer, exit code {code}")

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def _child(options: argparse.Namespace, task: str, model: str, name: str) -> None:
    from benchmarks.contestants import contestants, make, write_source

    folder = options.work / model
    folder.mkdir(parents=True, exist_ok=True)
    if task == "source":
        write_source(folder, model)
        print("{}", flush=True)
        return
    (contestant,) = [each for each in contestants(model, tuple(options.merge)) if each.name == name]
    facts = make(folder, contestant)
    if task == "make":
        print(json.dumps(facts), flush=True)
        return
    held = np.load(folder / "held.npy")[: options.pictures]
    start = contestant.start(folder / contestant.artifact, options.threads)
    call = start(held[:1])
    for _ in range(WARM_UP):
        call()
    print(json.dumps({"resident_mb": _resident_mb()}), flush=True)
    for line in sys.stdin:
        if line.strip() == "rows":
            file = f"rows-{contestant.artifact}-{contestant.start.__name__}.npy"
            np.save(folder / file, np.concatenate([start(held[i : i + 1])() for i in range(len(held))]))
            print(json.dumps({"rows": file}), flush=True)
        else:
            begin = time.perf_counter()
            call()
            print(json.dumps({"ms": 1e3 * (time.perf_counter() - begin)}), flush=True)


def _resident_mb() -> float | None:
    """Of this process now, model and libraries and all; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    (line,) = [line for line in lines if line.startswith("VmRSS")]
    return round(int(line.split()[1]) / 1e3, 1)


def _write(output: Path, model: str, found: dict[str, Any]) -> None:
    """Replace one model's figures in the file, and write the page again from all of them."""
    from benchmarks.contestants import MODELS
    from benchmarks.machine import keep_figures

    known = keep_figures(output.with_suffix(".json"), model, found, MODELS)
    lines = [
        "# Image towers made small and fast", "",
        "ViTs with random weights at the real shape, one picture a call. Every contestant in a process of its own, taking turns in one "
        "run; medians. Relative distance (error over the distance between different pictures) and smallest cosine are to the first "
        "row's, on photographs that no calibration saw. Memory is all that the process holds. Made by `python -m benchmarks.compression`.",
        "",
    ]  # fmt: skip
    for name, each in known.items():
        lines += _table(MODELS[name][0], each)
    text = "\n".join(lines)
    output.with_suffix(".md").write_text(text)
    print(text)


def _table(title: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"## ViT-{title}, {found['threads']} threads, {found['rounds']} rounds", "",
        "| | p50 | p90 | times faster | relative distance | cosine, min | size | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        if "failed" in row:
            reason = row["failed"].replace("|", "/")
            lines.append(f"| {row['contestant']} | failed: {reason} | | | | | | |")
            continue
        cells = [
            f"{row['p50_ms']:.1f} ms", f"{row['p90_ms']:.1f} ms", f"{row['times_faster']:.2f}x" if "times_faster" in row else "-",
            f"{row['relative_distance']:.2g}" if "relative_distance" in row else "-",
            f"{row['cosine_min']:.6f}" if "cosine_min" in row else "-", f"{row['size_mb']:.0f} MB",
            f"{row['resident_mb']:.0f} MB" if row.get("resident_mb") else "-",
        ]  # fmt: skip
        lines.append(f"| {row['contestant']} | {' | '.join(cells)} |")
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    return [*lines, "", f"Machine: {machine}.", ""]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
