"""What a run consists of, and about how long each step takes: told before it begins, and while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil, inf, log2

from edgeclip.bench.settings import PARTS, SCENARIOS, Part, ScenarioName, Settings
from edgeclip.bench.tasks import AUTO, takes_labels, unit_of
from edgeclip.errors import InputError

Tell = Callable[[str, float], None]  # what is being done, seconds left until the end

LOOK, LOOK_S = "look at the device", 3.0  # idle power, and pictures that are made
PROCESS_S = 1.0  # a fresh process: Python, numpy, onnxruntime
BYTES_PER_S = 500e6  # of a bundle, while it is opened: weights read and packed
WARMUP_S = 1.5  # of one launch, or three tenths of it where that is less
ROOFLINE_S = 2.5  # probes and counting, beside part_seconds


def silent(what: str, left_s: float) -> None:
    """Tells nobody."""


class Plan:
    """The steps of a run, in order; each is told when it begins, with the time that is left."""

    def __init__(self, steps: list[tuple[str, float]], tell: Tell) -> None:
        self.steps, self._tell = steps, tell

    def begin(self, what: str) -> None:
        """A step begins. Whatever should have come before it has been left out."""
        at = next((i for i, (name, _) in enumerate(self.steps) if name == what), 0)
        self.steps = self.steps[at:]
        self._tell(what, sum(seconds for _, seconds in self.steps))


def steps_of(settings: Settings, size_bytes: int, variants: int, cores: int) -> list[tuple[str, float]]:
    """Names of all steps, with the seconds that each is expected to take.

    Args:
        size_bytes: of the bundle.
        variants: of the image tower.
        cores: that this process may use.
    """
    process = PROCESS_S + size_bytes / BYTES_PER_S
    found = [(LOOK, LOOK_S)]
    for name in settings.scenarios:
        launches = launches_of(name, settings)
        seconds = settings.min_seconds / launches
        each = process + min(WARMUP_S, 0.3 * seconds) + seconds
        found += [(launch_name(name, k, launches), each) for k in range(launches)]
    point = settings.part_seconds + 0.5
    parts: dict[Part, float] = {
        "stages": process + point,
        "batches": len(settings.batches) * point,
        "roofline": 2 * settings.part_seconds + ROOFLINE_S,
        "threads": (1 + ceil(log2(max(cores, 1)))) * (point + process),
        "variants": variants * (point + process),
        "memory": 2 * process,
        "cold": 2 * settings.cold_starts * process,
    }
    return found + [(part, parts[part]) for part in PARTS if part in settings.parts]


def launches_of(name: ScenarioName, settings: Settings) -> int:
    """How many processes a scenario is shared out to. A queue has to grow as long as it will: the server is one."""
    return 1 if name == "server" else settings.launches


def launch_name(name: ScenarioName, k: int, launches: int) -> str:
    """What a step is called."""
    return name if launches == 1 else f"{name} {k + 1}/{launches}"


def share(settings: Settings, k: int, launches: int) -> Settings:
    """The settings of one launch of several: its part of the durations, and queries of its own."""
    return replace(
        settings,
        min_seconds=settings.min_seconds / launches,
        max_seconds=settings.max_seconds / launches,
        min_queries=ceil(settings.min_queries / launches),
        seed=settings.seed + k,
    )


def check_settings(settings: Settings) -> None:
    """Refuse what cannot be measured, before anything is opened. Raises InputError."""
    deaf = settings.task != AUTO and unit_of(settings.task) == "picture" and not takes_labels(settings.task)
    if settings.labels and deaf:
        raise InputError(
            f"labels: task {settings.task!r} has no use for them. Drop --labels, or choose --task classify or detect."
        )
    for what, given, known in (
        ("scenario", settings.scenarios, SCENARIOS),
        ("part", settings.parts, PARTS),
    ):
        if wrong := [name for name in given if name not in known]:
            raise InputError(f"{what} {wrong[0]!r}: no such {what}. Choose from {', '.join(known)}.")
    if not settings.scenarios and not settings.parts:
        raise InputError("nothing to measure: expected at least one scenario or one part.")
    for name in (
        "min_seconds", "max_seconds", "part_seconds", "min_queries", "launches", "multi_stream_samples", "offline_batch",
        "server_batch", "cold_starts", "index_size",
    ):  # fmt: skip
        if not 0 < getattr(settings, name) < inf:
            raise InputError(f"{name}: expected a number above 0, got {getattr(settings, name)}.")
    if settings.max_seconds < settings.min_seconds:
        raise InputError(
            f"max_seconds: expected at least min_seconds, {settings.min_seconds:g}, got {settings.max_seconds:g}."
        )
    least = 10 / settings.max_seconds  # at 0.01/s it would wait for minutes, and say nothing
    most = 1e7 / settings.min_seconds  # arrivals are drawn before: 80 MB of them
    if 0 < settings.server_rate_per_s < least or settings.server_rate_per_s > most:
        raise InputError(
            f"server_rate_per_s: expected {least:.3g} to {most:.3g}, at least ten queries within max_seconds, got {settings.server_rate_per_s:g}."
        )
    if not settings.batches or min(settings.batches) < 1:
        raise InputError(f"batches: expected numbers above 0, got {settings.batches}.")
    for name in ("server_rate_per_s", "server_bound_ms", "threads"):
        if not 0 <= getattr(settings, name) < inf:
            raise InputError(f"{name}: expected 0 or more, got {getattr(settings, name)}.")
    for name in ("server_rate_per_s", "server_bound_ms"):
        if getattr(settings, name) and "server" not in settings.scenarios:
            raise InputError(
                f"{name}: is of the scenario server, which is not asked for. Add --scenario server."
            )
