"""What is measured, and how long: one frozen dataclass, passed whole and written into the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgeclip.errors import InputError

ScenarioName = Literal["single-stream", "multi-stream", "offline", "server"]
Part = Literal["stages", "batches", "roofline", "threads", "variants", "memory", "cold"]
Preset = Literal["quick", "standard", "full"]

SCENARIOS: tuple[ScenarioName, ...] = ("single-stream", "multi-stream", "offline", "server")
# in the order in which they are measured: what the machine's state moves most comes first
PARTS: tuple[Part, ...] = ("stages", "batches", "roofline", "threads", "variants", "memory", "cold")


@dataclass(frozen=True)
class Settings:
    """One run of `edgeclip bench`. Whatever changes a figure is a field here."""

    task: str = "classify"  # an entry of `edgeclip.bench.tasks.TASKS`; "auto" becomes what the bundle is for
    preset: Preset = "standard"  # where the durations below come from
    scenarios: tuple[ScenarioName, ...] = ("single-stream", "multi-stream", "offline")
    parts: tuple[Part, ...] = PARTS  # what is measured beside the scenarios
    # engines in the order to try, () for the best that opens; variants by id, () for the bundle's own choice
    engines: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    threads: int = (
        0  # CPU threads of one operator and of decoding; 0: the physical cores this process may use
    )
    decode: Literal["fast", "exact"] = "fast"
    min_seconds: float = 60.0  # of each scenario, warm-up apart
    min_queries: int = 1024  # of each scenario
    # fresh processes that a scenario's time is shared out to: each has its own layout in memory, which alone moves p50 by some percent
    # with ten of 6 s a slowdown by 10 % is found on recorded noise, with five it is not
    launches: int = 10
    # a scenario ends here even below `min_queries`, and says that its evidence is short
    max_seconds: float = 180.0
    part_seconds: float = 10.0  # of each point of a sweep, and of the stages
    multi_stream_samples: int = 8  # pictures, or texts, of one query
    offline_batch: int = 8  # pictures in one call of the engine
    server_rate_per_s: float = 0.0  # offered queries; 0: the highest rate that holds the bound is searched
    server_bound_ms: float = 0.0  # for p99; 0: ten times the p50 of a single stream
    server_batch: int = 8  # queries that may be merged into one call
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    cold_starts: int = 5  # fresh processes of each kind
    labels: tuple[
        str, ...
    ] = ()  # classify, detect; (): those baked into the bundle, else twenty of edgeclip's own
    index_size: int = 10_000  # search: unit vectors that a query is compared with
    seed: int = 0  # which inputs a query gets, and when it arrives


# name -> the fields that differ from the dataclass. "standard" takes some ten minutes; "full" meets MLPerf's 600 s a scenario.
PRESETS: dict[Preset, dict[str, object]] = {
    "quick": {
        "min_seconds": 8.0,
        "min_queries": 64,
        "max_seconds": 12.0,
        "launches": 3,
        "part_seconds": 1.0,
        "batches": (1, 4, 16),
        "cold_starts": 2,
    },
    "standard": {},
    "full": {"min_seconds": 600.0, "min_queries": 24_576, "max_seconds": 7200.0, "part_seconds": 60.0},
}


def preset(name: Preset, **changes: object) -> Settings:
    """The settings of a preset, some of them changed.

    Raises:
        InputError: no such preset, or a value that cannot be used.
    """
    if name not in PRESETS:
        raise InputError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}.")
    return replace(Settings(preset=name, **PRESETS[name]), **changes)  # type: ignore[arg-type]
