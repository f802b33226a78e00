"""The scenarios of `edgeclip bench` beside MLPerf's own LoadGen: the same calls of one open model, in one process, in turn.

    pip install --target .cache/peers --no-deps -r benchmarks/requirements.txt
    PYTHONPATH=.cache/peers python -m benchmarks.loadgen

Each round measures every scenario by both, and who comes first changes from round to round. A single stream goes first: the server's rate is
half of what it reaches, and its bound ten times its p50, for both. LoadGen's system under test is Python: queries are answered
in the thread that issues them, the server's by a worker that merges what waits, as edgeclip's scenario does.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from edgeclip import load
from edgeclip.bench.between import Nothing
from edgeclip.bench.early_stopping import estimate
from edgeclip.bench.report import ScenarioResult
from edgeclip.bench.samples import load_inputs
from edgeclip.bench.scenarios import run_scenario
from edgeclip.bench.settings import SCENARIOS, ScenarioName, Settings
from edgeclip.bench.tasks import Task, open_task

ROOT = Path(__file__).parents[1]
LOAD, BOUND = 0.5, 10
Figures = dict[str, float | None]
FIGURES = ("queries", "p50_ms", "p90_ms", "p99_ms", "early_stopping_ms", "discarded", "samples_per_s")


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--task", default="classify")
    parser.add_argument(
        "--images", type=Path, help="a folder of photographs; default: pictures that edgeclip makes"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=30.0, help="of each scenario, by each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="default: all of them")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/loadgen")
    options = parser.parse_args()
    if os.getloadavg()[0] > 0.5:
        print(
            f"the machine is busy (load {os.getloadavg()[0]:.1f}): the figures will be wrong", file=sys.stderr
        )
    settings = Settings(
        task=options.task, min_seconds=options.seconds, min_queries=1, max_seconds=3 * options.seconds, threads=options.threads
    )  # fmt: skip
    names = [name for name in SCENARIOS if name in (options.scenario or SCENARIOS) or name == "single-stream"]
    rows: dict[str, dict[str, list[Figures]]] = {name: {"LoadGen": [], "edgeclip": []} for name in names}
    inputs = load_inputs(options.images, options.task, settings)
    with load(options.bundle, threads=options.threads) as model:
        task = open_task(options.task, model, inputs, settings)
        for number in range(options.rounds):
            settings = replace(
                settings, seed=number
            )  # other arrivals and inputs: by the one pattern or the other, a queue may be lucky
            for name in names:
                print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
                if name == "server" and not number:
                    settings = _rate(settings, rows["single-stream"]["edgeclip"])
                for by in ("LoadGen", "edgeclip") if number % 2 else ("edgeclip", "LoadGen"):
                    rows[name][by].append(MEASURE[by](name, task, settings, rows[name]["edgeclip"]))
        ran = str(model.info())
    summary = {
        "machine": describe(), "ran": ran, "task": options.task, "inputs": inputs.facts.kind, "seconds": options.seconds,
        "rounds": options.rounds, "server": {"rate_per_s": settings.server_rate_per_s, "bound_ms": settings.server_bound_ms},
        "scenarios": rows,
    }  # fmt: skip
    _write(options.output, summary)


def _rate(settings: Settings, single: Sequence[Figures]) -> Settings:
    """The server's rate and bound, from the first single stream."""
    p50, reached = single[0]["p50_ms"], single[0]["samples_per_s"]
    assert p50 is not None
    assert reached is not None
    return replace(
        settings, server_rate_per_s=round(LOAD * reached, 1), server_bound_ms=round(BOUND * p50, 1)
    )


def _by_edgeclip(name: ScenarioName, task: Task, settings: Settings, known: Sequence[Figures]) -> Figures:
    found: ScenarioResult = run_scenario(name, task, settings, Nothing())
    bound = found.early_stopping
    return {
        "queries": found.queries,
        "p50_ms": found.latency.p50.ms,
        "p90_ms": found.latency.p90.ms,
        "p99_ms": found.latency.p99.ms,
        "early_stopping_ms": bound.ms if bound else None,
        "discarded": bound.discarded if bound and bound.ms else None,
        "samples_per_s": found.throughput_per_s,
    }


def _by_loadgen(name: ScenarioName, task: Task, settings: Settings, known: Sequence[Figures]) -> Figures:
    import mlperf_loadgen as loadgen

    for _ in range(20):  # LoadGen leaves warming up to what it tests
        task.query(
            [0]
            * {"multi-stream": settings.multi_stream_samples, "offline": settings.offline_batch}.get(name, 1)
        )
    under_test = UnderTest(name, task, settings, loadgen)
    with tempfile.TemporaryDirectory() as folder:
        output, logs = loadgen.LogOutputSettings(), loadgen.LogSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        logs.log_output, logs.enable_trace = output, False
        sut = loadgen.ConstructSUT(under_test.issue, under_test.flush)
        library = loadgen.ConstructQSL(task.samples, task.samples, _nothing, _nothing)
        loadgen.StartTestWithLogSettings(sut, library, _asked(name, settings, known, loadgen), logs)
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)
        under_test.close()
        return _parse(name, (Path(folder) / "mlperf_log_summary.txt").read_text(), under_test.queries)


MEASURE: dict[str, Callable[..., Figures]] = {"LoadGen": _by_loadgen, "edgeclip": _by_edgeclip}


def _nothing(samples: object) -> None:
    """The library's samples lie in memory already."""


class UnderTest:
    """What LoadGen drives: the task's query, and a word back for every sample."""

    def __init__(self, name: ScenarioName, task: Task, settings: Settings, loadgen: Any) -> None:
        self._task, self._loadgen, self.queries = task, loadgen, 0
        self._batch = {"offline": settings.offline_batch, "server": settings.server_batch}.get(name)
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._serve) if name == "server" else None
        if self._worker:
            self._worker.start()

    def issue(self, samples: Any) -> None:
        """Called by LoadGen."""
        if self._worker:
            self.queries += 1
            self._waiting.put(samples[0])
            return
        size = self._batch or len(samples)
        for start in range(0, len(samples), size):
            self.queries += 1
            self._answer(samples[start : start + size])

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """End the worker."""
        if self._worker:
            self._waiting.put(None)
            self._worker.join()

    def _answer(self, samples: Any) -> None:
        self._task.query([sample.index for sample in samples])
        self._loadgen.QuerySamplesComplete(
            [self._loadgen.QuerySampleResponse(sample.id, 0, 0) for sample in samples]
        )

    def _serve(self) -> None:
        assert self._batch
        while (first := self._waiting.get()) is not None:
            taken = [first]
            while len(taken) < self._batch and not self._waiting.empty() and (more := self._waiting.get()):
                taken.append(more)
            self._answer(taken)


def _asked(name: ScenarioName, settings: Settings, known: Sequence[Figures], loadgen: Any) -> Any:
    """LoadGen's settings for the same duration, rate and bound."""
    found = loadgen.TestSettings()
    found.mode = loadgen.TestMode.PerformanceOnly
    found.scenario = {
        "single-stream": loadgen.TestScenario.SingleStream,
        "multi-stream": loadgen.TestScenario.MultiStream,
        "offline": loadgen.TestScenario.Offline,
        "server": loadgen.TestScenario.Server,
    }[name]
    found.min_duration_ms, found.min_query_count = int(1e3 * settings.min_seconds), 1
    found.max_duration_ms = 0 if name == "offline" else int(1e3 * settings.max_seconds)
    found.single_stream_expected_latency_ns = found.multi_stream_expected_latency_ns = 1_000_000
    found.multi_stream_samples_per_query = settings.multi_stream_samples
    found.schedule_rng_seed = found.sample_index_rng_seed = found.qsl_rng_seed = 1 + settings.seed
    # so many samples are made into the one query: by edgeclip's rate where that came first
    found.offline_expected_qps = (known[-1]["samples_per_s"] if known else None) or 100
    if name == "server":
        found.server_target_qps = settings.server_rate_per_s
        found.server_target_latency_ns = int(1e6 * settings.server_bound_ms)
        found.server_target_latency_percentile = 0.99
    return found


def _parse(name: ScenarioName, summary: str, queries: int) -> Figures:
    """The figures of LoadGen's own summary."""

    def number(pattern: str) -> float | None:
        found = re.search(pattern, summary)
        return float(found[1]) if found else None

    def ms(percent: int) -> float | None:
        value = number(rf"{percent}\.00 percentile latency \(ns\)\s*: (\d+)")
        return None if value is None or name == "offline" else value / 1e6

    bound = number(r"Early stopping (?:90|99)[\d.]*th percentile estimate: (\d+)")
    rate = number(r"(?:Samples per second|Completed samples per second)\s*: ([\d.]+)")
    if rate is None and (mean := number(r"Mean latency \(ns\)\s*: (\d+)")):
        per_query = number(r"samples_per_query : (\d+)") or 1
        rate = per_query * 1e9 / mean
    return {
        "queries": queries,
        **{f"p{percent}_ms": ms(percent) for percent in (50, 90, 99)},
        "early_stopping_ms": None if bound is None else bound / 1e6,
        "discarded": number(r"Would discard (\d+)"),
        "samples_per_s": rate,
    }


def _write(output: Path, summary: dict[str, Any]) -> None:
    server = summary["server"]
    lines = [
        "# The scenarios beside MLPerf's LoadGen",
        "",
        f"{summary['ran']}, {summary['task']} of {summary['inputs']} inputs; {summary['rounds']} rounds of {summary['seconds']:g} s each, in turn in "
        "one process; medians of the rounds, written by `python -m benchmarks.loadgen`. "
        f"Server: {server['rate_per_s']:g}/s, bound {server['bound_ms']:g} ms.",
        "",
        "| scenario | by | queries | p50 ms | p90 ms | p99 ms | early stopping ms | samples/s |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, by in summary["scenarios"].items():
        for who, rounds in by.items():
            cells = [_median(rounds, figure) for figure in FIGURES if figure != "discarded"]
            shown = [
                "-" if value is None else f"{value:.{0 if i == 0 else 2}f}" for i, value in enumerate(cells)
            ]
            lines.append(f"| {name} | {who} | {' | '.join(shown)} |")
        change = [
            "-" if None in (a, b) else f"{100 * (b / a - 1):+.1f} %"
            for a, b in (
                (_median(by["LoadGen"], f), _median(by["edgeclip"], f))
                for f in FIGURES[1:]
                if f != "discarded"
            )
        ]
        lines.append(f"| | difference | | {' | '.join(change)} |")
    rules = [
        (rounds["queries"], percentile, rounds["discarded"])
        for name, percentile in (("single-stream", 90), ("multi-stream", 99))
        for rounds in summary["scenarios"].get(name, {"LoadGen": []})["LoadGen"]
        if rounds["discarded"] is not None
    ]
    same = sum(estimate(range(int(n)), percentile).discarded == thrown for n, percentile, thrown in rules)
    lines += [
        "",
        f"Early stopping leaves out as many of the slowest queries as LoadGen does in {same} of its {len(rules)} runs that say how many. "
        "A percentile of edgeclip lies between two neighbours in proportion, LoadGen's is the upper one.",
        "",
        "Machine: " + ", ".join(f"{key} {value}" for key, value in summary["machine"].items()) + ".",
        "",
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    output.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


def _median(rounds: Sequence[Figures], figure: str) -> float | None:
    known = [value for each in rounds if (value := each[figure]) is not None]
    return float(np.median(known)) if known else None


if __name__ == "__main__":
    main()
