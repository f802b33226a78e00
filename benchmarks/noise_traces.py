"""Record what one unchanged call takes, launch after launch: what verdicts of `edgeclip bench compare` are tested on.

    python -m benchmarks.noise_traces OUT.npz [--bundle nano] [--launches 48] [--seconds 6] [--threads 1] [--images DIR]

Every launch is a fresh process that classifies the same pictures in the same order, as `edgeclip bench --scenario single-stream`. OUT.npz
holds starts, at_ms, us of all queries; pulse_starts, pulse_at_ms, pulse_us of the pulses between them; both times within a launch.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from edgeclip.bench.launch import launch
from edgeclip.bench.samples import load_inputs
from edgeclip.bench.settings import preset


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--bundle", default="nano")
@click.option("--launches", default=48)
@click.option("--seconds", default=6.0)
@click.option("--threads", default=1)
@click.option("--images", type=click.Path(exists=True, path_type=Path))
def main(out: Path, bundle: str, launches: int, seconds: float, threads: int, images: Path | None) -> None:
    """Record, and write when all is done."""
    settings = preset("quick", min_seconds=seconds, max_seconds=2 * seconds, min_queries=1, threads=threads)
    inputs = load_inputs(images, settings.task, settings)
    latencies, pulses = [], []
    for k in range(launches):
        result = launch(bundle, "single-stream", settings, inputs).result
        assert result.latencies is not None
        assert result.pulse is not None
        latencies.append(result.latencies)
        pulses.append(result.pulse)
        click.echo(
            f"{k + 1}/{launches}: p50 {result.latency.p50.ms:.2f} ms, pulse {np.median(result.pulse.us):.0f} us"
        )
    np.savez_compressed(
        out,
        starts=np.cumsum([0, *(len(one.ms) for one in latencies[:-1])]).astype(np.uint32),
        at_ms=np.concatenate([one.at_ms for one in latencies]).astype(np.uint16),
        us=np.round(1e3 * np.concatenate([one.ms for one in latencies])).astype(np.uint32),
        pulse_starts=np.cumsum([0, *(len(one.us) for one in pulses[:-1])]).astype(np.uint16),
        pulse_at_ms=np.concatenate([one.at_ms for one in pulses]).astype(np.uint16),
        pulse_us=np.concatenate([one.us for one in pulses]).astype(np.float32),
    )


if __name__ == "__main__":
    main()
