"""The report, as frozen dataclasses: what `edgeclip bench` writes and every page and verdict is made from.

The published JSON Schema is docs/bench.schema.json. What could not be measured is None, and `not_measured` says why; nothing is guessed.
Durations are ms, sizes bytes, temperatures degrees Celsius, powers W, energies J, clocks MHz.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgeclip.bench.settings import ScenarioName, Settings

FORMAT = "edgeclip.bench"
FORMAT_VERSION = (1, 0)  # (major, minor): another major is refused, a newer minor is read
NOT_ASKED = "not asked for"  # why a part that the user left out was not measured
MOST_KEPT = 20_000  # latencies of one scenario that a report holds


@dataclass(frozen=True)
class Quantile:
    """One percentile with its interval of 95 %, over blocks of time and over launches."""

    ms: float
    low: float | None = None  # None: too few values for an interval
    high: float | None = None


@dataclass(frozen=True)
class Spread:
    """The distribution of a duration."""

    count: int
    mean_ms: float
    min_ms: float
    p50: Quantile
    p90: Quantile
    p99: Quantile
    max_ms: float


@dataclass(frozen=True)
class Latencies:
    """Single queries, in the order in which they were made."""

    every: int  # 1: all are here; k: each k-th
    starts: tuple[
        int, ...
    ]  # positions at which each launch begins: a scenario is measured in several fresh processes
    at_ms: tuple[int, ...]  # when it was due (server) or began, since the scenario's first
    ms: tuple[float, ...]
    sample: tuple[int, ...]  # which of the inputs; of several in one query the first


@dataclass(frozen=True)
class Pulse:
    """A fixed piece of work, done between queries all through a run: how fast the machine itself was meanwhile."""

    starts: tuple[int, ...]  # positions at which each launch begins
    at_ms: tuple[int, ...]  # as of the latencies
    us: tuple[float, ...]


@dataclass(frozen=True)
class Warmup:
    """Queries that do not count."""

    queries: int
    seconds: float
    steady: bool  # the medians had settled when it ended, in three of four launches at least


@dataclass(frozen=True)
class EarlyStopping:
    """An upper bound of a percentile with 99 % confidence, by MLPerf's rule."""

    percentile: float  # 90 or 99
    ms: float | None  # None: too few queries to say
    queries: int
    queries_needed: int  # before it can say anything at all
    discarded: int  # of the slowest, above the bound


@dataclass(frozen=True)
class ScenarioResult:
    """One scenario."""

    scenario: ScenarioName
    launches: int  # fresh processes that it was measured in, one after another
    samples_per_query: int
    queries: int
    samples: int
    seconds: float  # of measuring, all launches, without warm-up and without the work between queries
    throughput_per_s: float  # samples
    warmup: Warmup
    latency: Spread  # of a query; server: since it was due, whether or not anybody was free
    early_stopping: EarlyStopping | None
    latencies: Latencies | None
    pulse: Pulse | None
    enough: bool  # the durations and queries that the settings ask for were reached
    offered_per_s: float | None = None  # server: mean rate of arrivals
    bound_ms: float | None = None  # server: for p99
    holds: bool | None = None  # server: p99 is within the bound at this rate
    mean_batch: float | None = None  # server: queries that shared a call
    energy_j: float | None = None  # of one sample, by the device's own counters or powers
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One part of a call."""

    name: str  # decode, preprocess, tokenize, copy in, image tower, text tower, copy out, head, other
    time: Spread
    share: float  # of the end to end time, by means


@dataclass(frozen=True)
class Stages:
    """Where the time of one call with one input goes. The stages and "other" add up to the whole."""

    whole: Spread
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepPoint:
    """Throughput and latency at one batch size or number of threads."""

    value: int
    throughput_per_s: float  # samples
    latency: Spread  # of a call
    failed: str = ""  # why there are no figures (they are 0 then)


@dataclass(frozen=True)
class VariantPoint:
    """One variant of the image tower: what it costs in fidelity and what it gains."""

    id: str
    precision: str
    runs: bool
    latency: Spread | None  # of the tower alone, one picture a call
    relative_distance: float | None  # to the source, as the bundle states it
    cosine_min: float | None
    size_bytes: int
    engine: str = ""
    failed: str = ""


@dataclass(frozen=True)
class ColdStart:
    """From starting a process to its first result; medians over `runs` fresh processes."""

    kind: Literal["empty caches", "label pack"]
    runs: int
    import_ms: float
    load_ms: float  # opening the bundle and its towers
    first_ms: float  # the first result after that
    total_ms: float  # from before the process is started
    low_ms: float  # of the totals, the smallest
    high_ms: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """Of a fresh process that opens the bundle and does the task."""

    rss_bytes: int | None  # resident, after some calls
    peak_rss_bytes: int | None
    device_bytes: int | None  # of the GPU
    estimated_bytes: int  # what `inspect --memory` says of these towers, and a process without any


@dataclass(frozen=True)
class Roof:
    """How near one tower comes to what this machine can do, by a product of matrices and a copy measured beside it."""

    tower: str  # image or text
    variant: str
    precision: str  # of its products
    batch: int
    operations: int  # of one call: 2 for each multiply-add
    weight_bytes: int
    ms: float  # median of a call
    gflops: float  # achieved
    peak_gflops: float  # of the measured product, on the same engine and threads
    share_of_peak: float
    copy_gb_per_s: float  # read and write, of the measured copy
    share_of_copy: float  # time that reading the weights once would take, of a call's
    bound: Literal["compute", "memory"]
    by_operator: dict[str, float] = field(
        default_factory=dict
    )  # share of the tower's time; {} where the engine does not tell
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    driver: str
    memory_bytes: int
    power_limit_w: float | None = None
    max_clock_mhz: float | None = None


@dataclass(frozen=True)
class Device:
    """What the figures were measured on."""

    name: str  # board or machine, e.g. "NVIDIA Jetson Orin Nano"; else the CPU
    cpu: str
    cores: int  # physical, that this process may use
    logical_cores: int
    cpu_flags: tuple[str, ...]
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    system: str
    python: str
    packages: dict[str, str]  # name -> version, of those that decide a figure
    governor: str | None  # of the CPU's clock
    power_mode: str | None  # nvpmodel's, on a Jetson
    virtual: str | None  # what it runs in, e.g. "kvm", "docker"; "" on bare metal


@dataclass(frozen=True)
class Series:
    """One quantity over the run."""

    name: str  # e.g. "cpu clock", "gpu temperature", "board power"
    unit: str
    at_s: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class State:
    """How the device was during the run."""

    series: tuple[Series, ...]
    throttled: bool | None  # None: the device does not tell
    flags: tuple[str, ...]  # what the reader must know, e.g. "the CPU's clock fell by 20 % during the run"
    energy_source: str | None  # e.g. "RAPL package-0", "NVML", "INA3221 VDD_IN"
    idle_power_w: float | None
    mean_power_w: float | None
    load_before: float | None  # of the machine, one minute, before the run
    stolen_share: float | None  # of CPU time, taken by other guests of the host
    other_cpu_share: float | None  # of the machine's CPU time, used by other programs


@dataclass(frozen=True)
class TowerUsed:
    """What really ran."""

    tower: str  # image, text, labels or prompts
    engine: str
    provider: str
    variant: str
    precision: str
    graph_sha256: str


@dataclass(frozen=True)
class Subject:
    """What was measured."""

    bundle: str  # as it was named
    name: str
    model_id: str
    digest: str  # of the bundle
    family: str
    size_bytes: int
    towers: tuple[TowerUsed, ...]
    threads: int
    fell_back: str = ""


@dataclass(frozen=True)
class PictureSet:
    """The inputs."""

    kind: Literal["pictures", "generated", "texts"]  # "generated": no folder was given
    count: int
    median_bytes: int
    median_pixels: int
    sha256: str  # over all of them: two reports with the same saw the same


@dataclass(frozen=True)
class Report:
    """One run of `edgeclip bench`."""

    created: str  # UTC, ISO 8601
    edgeclip: str  # version
    seconds: float  # that the whole run took
    subject: Subject
    settings: Settings
    device: Device
    inputs: PictureSet
    scenarios: tuple[ScenarioResult, ...]
    stages: Stages | None
    batches: tuple[SweepPoint, ...]
    threads: tuple[SweepPoint, ...]
    variants: tuple[VariantPoint, ...]
    cold: tuple[ColdStart, ...]
    memory: Memory | None
    roofline: tuple[Roof, ...]
    state: State
    harness_us: float  # what measuring adds to a query, measured on an empty one
    warnings: tuple[str, ...] = ()
    not_measured: dict[str, str] = field(default_factory=dict)  # field, as in "state.power" -> why
