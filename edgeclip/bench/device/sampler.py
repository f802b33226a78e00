"""Samples the device's state while others measure: a thread of the process that waits for them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgeclip.bench.device import cpu, flags, jetson, nvml, rapl, surroundings, tegrastats, thermal
from edgeclip.bench.device.meter import Meter
from edgeclip.bench.device.source import ROOT, Reading, Source
from edgeclip.bench.report import Series, State

PERIOD_S = 0.5
IDLE_S = 2.0  # that the device's power is watched before anything runs
MOST_POINTS = 600  # of a series in the report
UNITS = {"clock": "MHz", "temperature": "°C", "load": "%", "power": "W", "used": "MB"}


def open_sources(root: Path = ROOT) -> tuple[list[Source], dict[str, str]]:
    """Whatever this device has, and why a source did not open. What a source itself lacks stands in its `not_measured`."""
    found: list[Source] = []
    failed: dict[str, str] = {}
    for module in (surroundings, cpu, thermal, rapl, nvml, jetson, tegrastats):
        if module in (jetson, tegrastats) and not (jetson.present(root) and module.present(root)):
            continue
        if module is tegrastats and any(source.part == "board" and source.covers for source in found):
            continue  # files tell, and a program beside the measured one costs
        try:
            found.append(module.open_source(root))
        except Exception as error:  # of a driver's library or a file that nobody foresaw: the run must go on
            failed[f"state.{module.__name__.rpartition('.')[2]}"] = f"{type(error).__name__}: {error}"
    return found, failed


class Sampler:
    """Use it in a `with` block around a run.

    Args:
        root: of the file system that tells.
        sources, clock, sleep, idle_s, period_s: for tests.
    """

    def __init__(
        self, *, root: Path = ROOT, sources: Sequence[Source] | None = None, clock: Callable[[], int] = time.perf_counter_ns,
        sleep: Callable[[float], None] = time.sleep, idle_s: float = IDLE_S, period_s: float = PERIOD_S,
    ) -> None:  # fmt: skip
        self.gpu = True  # the run uses a GPU; set it to False when it is known not to: the GPU's own energy is then not the run's
        self.not_measured: dict[str, str] = {}
        self.cost_ms: list[float] = []  # of each sample
        self._root, self._given = root, sources
        self._clock, self._sleep, self._idle_s, self._period_s = clock, sleep, idle_s, period_s
        self._sources: list[Source] = []
        self._meters: list[tuple[str, str, Meter]] = []  # part, what it covers
        self._at: list[int] = []
        self._readings: list[Reading] = []  # all sources' at one instant
        self._idle: tuple[int, int] | None = None  # when nothing ran yet
        self._lock, self._over = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="device sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._machine = surroundings.describe(self._root)
        self._cpu = cpu.describe(self._root)
        self._board = jetson.describe(self._root) if jetson.present(self._root) else None
        self._sources, failed = open_sources(self._root) if self._given is None else (list(self._given), {})
        for source in self._sources:
            self.not_measured |= source.not_measured
        self.not_measured |= failed
        self._settle()
        self._begun = surroundings.spent(self._root)
        self._take()
        if self._meters and self._idle_s > 0:
            for _ in range(max(1, round(self._idle_s / self._period_s))):
                self._sleep(self._period_s)
                self._take()
            self._idle = self._at[0], self._at[-1]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._take()
        self._ended = surroundings.spent(self._root)
        for source in self._sources:
            source.close()

    def _settle(self) -> None:
        """Drop reasons that another source made void; find whose energy counts."""
        for name in {name for source in list(self._sources) for name in self._ask(source).gauges}:
            self.not_measured.pop(f"state.{name.replace(' ', '_')}", None)
        having = [source for source in self._sources if source.covers]
        # a module's rails hold its CPU and its GPU
        metered = [source for source in having if source.part == "board"][:1] or having
        self._meters = [(source.part, source.covers, Meter()) for source in metered]
        if not any(source.tells for source in self._sources):
            self.not_measured["state.throttled"] = "nothing on this device tells whether its chip is slowed"

    def _counted(self) -> list[tuple[str, Meter]]:
        """(what it covers, meter) of all whose energy is the run's."""
        return [(covers, meter) for part, covers, meter in self._meters if part != "gpu" or self.gpu]

    def _loop(self) -> None:
        while not self._over.wait(self._period_s):
            self._take()

    def tick(self) -> None:
        """Sample if that is due."""
        if not self._at or self._clock() - self._at[-1] >= self._period_s * 1e9:
            self._take()

    def _take(self) -> None:
        """One sample of everything."""
        with self._lock:
            begun = self._clock()
            gauges, events, held = dict[str, float](), dict[str, int](), list[str]()
            for source in list(self._sources):
                reading = self._ask(source)
                for _, covers, meter in self._meters:
                    if covers == source.covers:
                        meter.add(begun, reading.energy_j, reading.power_w)
                gauges = {**reading.gauges, **gauges}  # the first to tell is believed
                events.update(reading.events)
                held += [words for words in reading.held if words not in held]
            self._at.append(begun)
            self._readings.append(Reading(gauges, events, tuple(held)))
            self.cost_ms.append((self._clock() - begun) / 1e6)

    def _ask(self, source: Source) -> Reading:
        """A source that fails is left out from here on, and the report says why."""
        try:
            return source.sample()
        except Exception as error:  # a driver's library raises whatever it likes; the run must go on
            self._sources.remove(source)
            source.close()
            self.not_measured[f"state.{type(source).__name__.lower()}"] = (
                f"stopped: {type(error).__name__}: {error}"
            )
            return Reading()

    def energy_j(self, begun_ns: int, ended_ns: int) -> float | None:
        """Joules that the device used between two instants of `perf_counter_ns`; None where that was not measured."""
        if self._meters and self._at and self._at[-1] < ended_ns and not self._over.is_set():
            self._take()
        return self._joules(begun_ns, ended_ns)

    def _joules(self, begun_ns: int, ended_ns: int) -> float | None:
        with self._lock:
            parts = [meter.between(begun_ns, ended_ns) for _, meter in self._counted()]
        told = [part for part in parts if part is not None]
        return sum(told) if told and len(told) == len(parts) else None

    def _watts(self, begun_ns: int, ended_ns: int) -> float | None:
        joules = self._joules(begun_ns, ended_ns)
        return None if joules is None else joules / ((ended_ns - begun_ns) / 1e9)

    def state(self) -> State:
        """How the device was, from the begin of the block until now."""
        with self._lock:
            at, readings = list(self._at), list(self._readings)
        ended = self._ended if self._over.is_set() else surroundings.spent(self._root)
        shares = flags.shares(self._begun, ended)
        cpus = os.cpu_count() or 1  # of the machine: its load counts all
        slowed, others = flags.of_readings(readings)
        fell = flags.of_fall(readings, cpus)
        tells = any(source.tells for source in self._sources)
        counted = " + ".join(covers for covers, _ in self._counted()) or None
        if counted is None:
            gpu = "only the GPU tells its energy, and the run was on the CPU"
            self.not_measured["state.power"] = (
                gpu if self._meters else "no counter of energy and no power rail can be read"
            )
        return State(
            series=(*_series(at, readings), *self._powers()),
            throttled=True if slowed or fell else False if tells else None,
            flags=(
                *slowed, *fell, *flags.of_shares(shares, self._machine.load, cpus), *others,
                *flags.of_clocks(self._cpu, self._board.fixed if self._board else None),
            ),
            energy_source=counted,
            idle_power_w=self._watts(*self._idle) if self._idle else None,
            mean_power_w=self._watts(at[0], at[-1]),
            load_before=self._machine.load,
            stolen_share=shares.stolen,
            other_cpu_share=shares.others,
        )  # fmt: skip

    def _powers(self) -> list[Series]:
        found = []
        for part, _, meter in self._meters:
            with self._lock:
                at, watts = meter.powers()
            seconds = [float(value) for value in (at - self._at[0]) / 1e9]
            found.append(_thinned(f"{part} power", "W", seconds, [float(value) for value in watts]))
        return [series for series in found if series.values]


def _series(at: Sequence[int], readings: Sequence[Reading]) -> list[Series]:
    found = []
    for name in dict.fromkeys(key for reading in readings for key in reading.gauges):
        points = [
            ((t - at[0]) / 1e9, r.gauges[name]) for t, r in zip(at, readings, strict=True) if name in r.gauges
        ]
        seconds, values = zip(*points, strict=True)
        found.append(_thinned(name, UNITS[name.split()[-1]], seconds, values))
    return found


def _thinned(name: str, unit: str, at_s: Sequence[float], values: Sequence[float]) -> Series:
    """At most MOST_POINTS of the points, evenly spread, the last among them."""
    last, most = max(0, len(values) - 1), min(len(values), MOST_POINTS)
    kept = [int(index) for index in np.linspace(0, last, most).round()]
    return Series(
        name,
        unit,
        tuple(round(at_s[index], 3) for index in kept),
        tuple(round(values[index], 3) for index in kept),
    )
