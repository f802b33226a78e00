"""Several samples a query, as from so many cameras at once: the next when the one before is done. Judged by p99."""

from __future__ import annotations

from edgeclip.bench.between import Between
from edgeclip.bench.report import ScenarioResult
from edgeclip.bench.scenarios.loop import closed_loop
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import Task


def run(task: Task, settings: Settings, between: Between, reference_ms: float) -> ScenarioResult:
    """See `run_scenario`."""
    samples = settings.multi_stream_samples
    return closed_loop("multi-stream", task, settings, between, per_query=samples, percentile=99)
