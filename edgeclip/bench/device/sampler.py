"""Samples the device's state while others measure: a thread of the process that waits for them."""

from __future__ import annotations

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


def open_sources(root: Path = ROOT) -> list[Source]:
    """Whatever this device has. What it has not says so in `not_measured` of its source."""
    found: list[Source] = [surroundings.open_source(root), cpu.open_source(root), thermal.open_source(root)]
    found += [rapl.open_source(root), nvml.open_source(root)]
    if jetson.present(root):
        found.append(board := jetson.open_source(root))
        if not board.covers and tegrastats.present(root):
            found.append(tegrastats.open_source(root))
    return found


class Sampler:
    """Use it in a `with` block around a run.

    Args:
        gpu: the run uses a GPU. Without it the GPU's own energy is not the run's.
        root: of the file system that tells.
        sources, clock, sleep, idle_s, period_s: for tests.
    """

    def __init__(
        self, *, gpu: bool = True, root: Path = ROOT, sources: Sequence[Source] | None = None,
        clock: Callable[[], int] = time.perf_counter_ns, sleep: Callable[[float], None] = time.sleep,
        idle_s: float = IDLE_S, period_s: float = PERIOD_S,
    ) -> None:  # fmt: skip
        self.not_measured: dict[str, str] = {}
        self.cost_ms: list[float] = []  # of each sample
        self._gpu, self._root, self._given = gpu, root, sources
        self._clock, self._sleep, self._idle_s, self._period_s = clock, sleep, idle_s, period_s
        self._sources: list[Source] = []
        self._meters: dict[str, Meter] = {}  # by what they cover
        self._at: list[int] = []
        self._readings: list[Reading] = []  # all sources' at one instant
        self._idle_w: float | None = None
        self._lock, self._over = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="device sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._machine = surroundings.describe(self._root)
        self._cpu = cpu.describe(self._root)
        self._board = jetson.describe(self._root) if jetson.present(self._root) else None
        self._sources = list(open_sources(self._root) if self._given is None else self._given)
        for source in self._sources:
            self.not_measured |= source.not_measured
        self._settle()
        self._meters = {source.covers: Meter() for source in self._metered()}
        self._begun = surroundings.spent(self._root)
        self._take()
        if self._meters and self._idle_s > 0:
            self._watch_idle()
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
        """Drop reasons that another source made void, and say once what is missing over all."""
        given = {name for source in self._sources for name in source.sample().gauges}
        for key in [f"state.{name.replace(' ', '_')}" for name in given]:
            self.not_measured.pop(key, None)
        if not self._metered():
            only = "only the GPU tells its energy, and the run was on the CPU"
            gpu = any(source.part == "gpu" and source.covers for source in self._sources)
            self.not_measured["state.power"] = (
                only if gpu else "no counter of energy and no power rail can be read"
            )
        if not any(source.tells for source in self._sources):
            self.not_measured["state.throttled"] = "nothing on this device tells whether its chip is slowed"

    def _metered(self) -> list[Source]:
        """Whose energy counts: the module's rails hold all; else the CPU's and, where it runs, the GPU's."""
        having = [source for source in self._sources if source.covers]
        board = [source for source in having if source.part == "board"][:1]
        return board or [source for source in having if source.part == "cpu" or self._gpu]

    def _watch_idle(self) -> None:
        first = self._at[-1]
        for _ in range(max(1, round(self._idle_s / self._period_s))):
            self._sleep(self._period_s)
            self._take()
        joules = self._joules(first, self._at[-1])
        self._idle_w = None if joules is None else joules / ((self._at[-1] - first) / 1e9)

    def _loop(self) -> None:
        while not self._over.wait(self._period_s):
            self._take()

    def begin(self) -> None:
        """Nothing: it began with the `with` block."""

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
                if meter := self._meters.get(source.covers):
                    meter.add(self._clock(), reading.energy_j, reading.power_w)
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
            parts = [meter.between(begun_ns, ended_ns) for meter in self._meters.values()]
        told = [part for part in parts if part is not None]
        return sum(told) if told and len(told) == len(parts) else None

    def state(self) -> State:
        """How the device was, from the begin of the block until now."""
        with self._lock:
            at, readings = list(self._at), list(self._readings)
        ended = self._ended if self._over.is_set() else surroundings.spent(self._root)
        shares = flags.shares(self._begun, ended)
        cpus = len(cpu.usable())
        slowed, others = flags.of_readings(readings)
        fell = flags.of_fall(readings, cpus)
        tells = any(source.tells for source in self._sources)
        sources = " + ".join(self._meters) or None
        mean = self._joules(at[0], at[-1]) if len(at) > 1 else None
        return State(
            series=(*_series(at, readings), *self._powers()),
            throttled=True if slowed or fell else False if tells else None,
            flags=(
                *slowed, *fell, *flags.of_shares(shares, self._machine.load, cpus), *others,
                *flags.of_clocks(self._cpu, self._board.fixed if self._board else None),
            ),
            energy_source=sources,
            idle_power_w=self._idle_w,
            mean_power_w=None if mean is None else mean / ((at[-1] - at[0]) / 1e9),
            load_before=self._machine.load,
            stolen_share=shares.stolen,
            other_cpu_share=shares.others,
        )  # fmt: skip

    def _powers(self) -> list[Series]:
        found = []
        for source in self._sources:
            if meter := self._meters.get(source.covers):
                with self._lock:
                    at, watts = meter.powers()
                seconds = [float(value) for value in (at - self._at[0]) / 1e9]
                found.append(
                    _thinned(f"{source.part} power", "W", seconds, [float(value) for value in watts])
                )
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
