"""One run of `edgeclip bench`, put together: scenarios in fresh processes, then the parts, and the device's state all the while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from edgeclip.bench.between import Nothing
from edgeclip.bench.cold import measure_cold
from edgeclip.bench.device import Sampler, describe_device
from edgeclip.bench.doubts import doubts
from edgeclip.bench.launch import Launched, launch
from edgeclip.bench.memory import measure_memory
from edgeclip.bench.opening import Used, open_model
from edgeclip.bench.plan import (
    LOOK,
    Plan,
    Tell,
    check_settings,
    launch_name,
    launches_of,
    share,
    silent,
    steps_of,
)
from edgeclip.bench.report import NOT_ASKED, Report, ScenarioResult, Subject
from edgeclip.bench.roofline import measure_roofline
from edgeclip.bench.samples import Inputs, load_inputs
from edgeclip.bench.scenarios import harness_us, merge
from edgeclip.bench.settings import PARTS, Part, ScenarioName, Settings, preset
from edgeclip.bench.stages import measure_stages
from edgeclip.bench.sweeps import sweep_batches, sweep_threads
from edgeclip.bench.tasks import Task, for_bundle, open_task, picture_tower_of
from edgeclip.bench.variants import measure_variants
from edgeclip.bundle import Bundle, open_bundle
from edgeclip.errors import EdgeClipError, EngineError
from edgeclip.runtime.model import Model
from edgeclip.runtime.threads import usable_cores
from edgeclip.version import __version__

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What all steps of one run share."""

    bundle: Bundle
    settings: Settings
    inputs: Inputs
    plan: Plan
    sampler: Sampler
    used: Used | None = None  # of the first launch; the others must run the same
    not_measured: dict[str, str] = field(default_factory=dict)


def measure(
    bundle: str | Path | Bundle,
    settings: Settings | None = None,
    images: Path | None = None,
    tell: Tell = silent,
) -> Report:
    """Measure a bundle on this machine.

    Args:
        bundle: as `edgeclip.load` takes it.
        settings: what is measured, and how long; None: the standard preset, some ten minutes.
        images: a folder of pictures that queries draw from; None: pictures that edgeclip makes, which the report says.
        tell: called when a step begins, with its name and the seconds that are left, about.
    Raises:
        InputError: settings or pictures that cannot be used. BundleError, EngineError: a bundle that does not open or a
            query that fails. A part that fails beside the scenarios does not raise: the report says why it is missing.
    """
    begun = time.perf_counter()
    settings = settings or preset("standard")
    check_settings(settings)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    settings = for_bundle(settings, opened)
    size, compared = opened.size_bytes, opened.manifest.variants_of(picture_tower_of(settings.task))
    plan = Plan(steps_of(settings, size, len(compared), usable_cores()), tell)
    plan.begin(LOOK)
    inputs = load_inputs(images, settings.task, settings)
    with Sampler() as sampler:
        run = Run(opened, settings, inputs, plan, sampler)
        scenarios = _scenarios(run)
        parts = _parts(run)
        state = sampler.state()
    manifest, ran = opened.manifest, run.used or Used((), settings.threads or usable_cores())
    subject = Subject(
        bundle=str(opened.root if isinstance(bundle, Bundle) else bundle), name=manifest.name, model_id=manifest.model_id,
        digest=opened.digest, family=manifest.family, size_bytes=size, towers=ran.towers, threads=ran.threads,
        fell_back=ran.fell_back,
    )  # fmt: skip
    found = Report(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"), edgeclip=__version__, seconds=0.0, subject=subject,
        settings=settings, device=describe_device(), inputs=inputs.facts, scenarios=scenarios, **parts, state=state,
        harness_us=harness_us(), not_measured={**sampler.not_measured, **run.not_measured},
    )  # fmt: skip
    return replace(found, warnings=doubts(found), seconds=time.perf_counter() - begun)


def _scenarios(run: Run) -> tuple[ScenarioResult, ...]:
    found: dict[ScenarioName, ScenarioResult] = {}
    for name in run.settings.scenarios:
        single = found.get("single-stream")
        reference = single.latency.p50.ms if single else 0.0
        if name == "server" and not reference and not run.settings.server_bound_ms:
            reference = _reference_ms(run)
        found[name] = _scenario(name, run, reference)
    return tuple(found.values())


def _scenario(name: ScenarioName, run: Run, reference_ms: float) -> ScenarioResult:
    """One scenario, in all its launches."""
    launches, done = launches_of(name, run.settings), list[Launched]()
    for k in range(launches):
        run.plan.begin(launch_name(name, k, launches))
        done.append(launch(run.bundle.spec, name, share(run.settings, k, launches), run.inputs, reference_ms))
        _same_engines(run, done[-1], launch_name(name, k, launches))
    found = merge([one.result for one in done], [one.begun_ns for one in done])
    energies = [run.sampler.energy_j(one.begun_ns, one.ended_ns) for one in done]
    known = [energy for energy in energies if energy is not None]
    return replace(found, energy_j=sum(known) / found.samples) if len(known) == launches else found


def _reference_ms(run: Run) -> float:
    """p50 of a single stream, measured briefly: the server's bound is ten times it."""
    seconds = run.settings.part_seconds
    brief = replace(run.settings, min_seconds=seconds, max_seconds=2 * seconds, min_queries=32)
    return launch(run.bundle.spec, "single-stream", brief, run.inputs).result.latency.p50.ms


def _same_engines(run: Run, one: Launched, where: str) -> None:
    """Remember what ran; figures of different engines are never put together. Warnings of the runtime are told once."""
    if run.used is None:
        run.used = one.used
        run.sampler.gpu = any(tower.provider != "CPUExecutionProvider" for tower in one.used.towers)
        for line in one.warnings:
            log.warning("%s", line)
    elif {t.tower: t for t in one.used.towers} != {t.tower: t for t in run.used.towers}:
        raise EngineError(
            f"{where}: ran {_named(one.used)}, and the launches before it {_named(run.used)}. Pass --require."
        )


def _named(ran: Used) -> str:
    return (
        ", ".join(f"{tower.variant} on {tower.engine} ({tower.provider})" for tower in ran.towers)
        or "nothing"
    )


def _parts(run: Run) -> dict[str, Any]:
    """The fields of the report that are measured beside the scenarios, in the order of PARTS."""
    found: dict[str, Any] = {}
    empty: Mapping[Part, Any] = {part: None if part in ("stages", "memory") else () for part in PARTS}
    with ExitStack() as stack:
        held = _Held(run, stack)
        for part in PARTS:
            if part not in run.settings.parts:
                run.not_measured[part] = NOT_ASKED
                found[part] = empty[part]
                continue
            run.plan.begin(part)
            if part not in _WITH_MODEL:
                stack.close()  # what runs in another process, or opens its own, has the memory to itself
            try:
                found[part] = _MEASURED[part](held)
            except EdgeClipError as error:
                run.not_measured[part], found[part] = str(error), empty[part]
    found["roofline"] = tuple(found["roofline"])
    return found


class _Held:
    """One open model and its task, for the parts that share them: opened by the first, closed when `stack` is."""

    def __init__(self, run: Run, stack: ExitStack) -> None:
        self.run, self._stack = run, stack
        self._opened: tuple[Model, Task] | None = None

    @property
    def opened(self) -> tuple[Model, Task]:
        if self._opened is None:
            run = self.run
            model = self._stack.enter_context(open_model(run.bundle, run.settings))
            self._opened = model, open_task(run.settings.task, model, run.inputs, run.settings)
        return self._opened


def _threads(held: _Held) -> Any:
    run = held.run

    def opened(threads: int) -> Model:
        return open_model(run.bundle, run.settings, threads)

    return sweep_threads(opened, run.inputs, run.settings, Nothing())


_WITH_MODEL: tuple[Part, ...] = ("stages", "batches", "roofline")
_MEASURED: Mapping[Part, Callable[[_Held], Any]] = {
    "stages": lambda held: measure_stages(*held.opened, held.run.settings, Nothing()),
    "batches": lambda held: sweep_batches(held.opened[0], held.run.inputs, held.run.settings, Nothing()),
    "roofline": lambda held: measure_roofline(
        held.run.bundle, held.opened[0], held.run.settings, texts=held.run.inputs.texts
    ),
    "threads": _threads,
    "variants": lambda held: measure_variants(held.run.bundle, held.run.settings, held.run.inputs, Nothing()),
    "memory": lambda held: measure_memory(held.run.bundle, held.run.settings, held.run.inputs),
    "cold": lambda held: measure_cold(held.run.bundle, held.run.settings, held.run.inputs),
}
