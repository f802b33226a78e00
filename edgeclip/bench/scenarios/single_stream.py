"""One sample a query, the next as soon as the one before is done: a camera, a user who waits. Judged by p90."""

from __future__ import annotations

from edgeclip.bench.between import Between
from edgeclip.bench.report import ScenarioResult
from edgeclip.bench.scenarios.loop import closed_loop
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import Task


def run(task: Task, settings: Settings, between: Between, reference_ms: float) -> ScenarioResult:
    """See `run_scenario`."""
    return closed_loop("single-stream", task, settings, between, per_query=1, percentile=90)
