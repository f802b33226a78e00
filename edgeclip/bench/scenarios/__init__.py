"""How queries arrive. A scenario is one file with `run`, and one line in `RUNS`.

    single-stream   one sample a query, the next as soon as the one before is done; p90
    multi-stream    8 samples a query; p99
    offline         one batch after another; samples a second
    server          queries arrive at random times, whether or not anybody is free; the rate at which p99 holds a bound

Queries draw their samples with replacement from a generator seeded by the settings: two runs with equal settings make the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from edgeclip.bench.between import Between
from edgeclip.bench.report import ScenarioResult
from edgeclip.bench.scenarios.launches import merge
from edgeclip.bench.scenarios.loop import harness_us
from edgeclip.bench.settings import ScenarioName, Settings
from edgeclip.bench.tasks import Task
from edgeclip.errors import InputError

__all__ = ["RUNS", "harness_us", "merge", "run_scenario"]

RUNS: Mapping[ScenarioName, str] = {
    "single-stream": "edgeclip.bench.scenarios.single_stream",
    "multi-stream": "edgeclip.bench.scenarios.multi_stream",
    "offline": "edgeclip.bench.scenarios.offline",
    "server": "edgeclip.bench.scenarios.server",
}


def run_scenario(
    name: ScenarioName, task: Task, settings: Settings, between: Between, *, reference_ms: float = 0
) -> ScenarioResult:
    """Warm up, then measure in this process.

    Args:
        between: called between queries; its time counts neither as latency nor as time that was measured.
        reference_ms: p50 of a single stream, of which the server's bound is made; 0: the warm-up's own.
    Returns:
        The result of one launch, with every latency; `merge` makes of one or several what a report holds.
    Raises:
        InputError: no such scenario, or settings that cannot be used. What a query raises passes through.
    """
    if name not in RUNS:
        raise InputError(f"scenario {name!r}: no such scenario. Choose one of {', '.join(RUNS)}.")
    found: ScenarioResult = import_module(RUNS[name]).run(task, settings, between, reference_ms)
    return found
