"""All samples lie ready, and one full batch follows another: a folder to be searched through. Judged by samples a second."""

from __future__ import annotations

from math import ceil

from edgeclip.bench.between import Between
from edgeclip.bench.report import ScenarioResult
from edgeclip.bench.scenarios.loop import closed_loop
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import Task


def run(task: Task, settings: Settings, between: Between, reference_ms: float) -> ScenarioResult:
    """See `run_scenario`. `min_queries` counts samples here, as MLPerf's does: 1024 are 128 batches of 8."""
    batch = settings.offline_batch
    least = ceil(settings.min_queries / batch)
    return closed_loop(
        "offline", task, settings, between, per_query=batch, percentile=None, min_queries=least
    )
