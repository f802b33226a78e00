"""Reports as a run would write them, made of arithmetic: what the tests of pages, files and verdicts start from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bench.cells import Cell, Matrix
from edgeclip.bench.comparison import Change, Comparison
from edgeclip.bench.report import (
    ColdStart,
    Device,
    EarlyStopping,
    Gpu,
    Latencies,
    Memory,
    PictureSet,
    Pulse,
    Quantile,
    Report,
    Roof,
    ScenarioResult,
    Series,
    Spread,
    Stage,
    Stages,
    State,
    Subject,
    SweepPoint,
    TowerUsed,
    VariantPoint,
    Warmup,
)
from edgeclip.bench.settings import preset

LAUNCHES = 3


def make_spread(ms: NDArray[Any], width: float = 0.02) -> Spread:
    """The distribution of `ms`, with intervals `width` to each side, 0 for none."""

    def at(percent: float) -> Quantile:
        value = float(np.percentile(ms, percent))
        wide = width * percent / 50  # the tail is known less well
        return (
            Quantile(value, value * (1 - wide), value * (1 + wide))
            if len(ms) >= 20 and width
            else Quantile(value)
        )

    return Spread(len(ms), float(ms.mean()), float(ms.min()), at(50), at(90), at(99), float(ms.max()))


def make_latencies(p50: float, count: int, seed: int = 0, slowdown: float = 0.0) -> NDArray[np.float64]:
    """(count,) ms around `p50`: a skewed bulk, a few stalls, and all slower by `slowdown` towards the end."""
    generator = np.random.default_rng(seed)
    ms = p50 * (0.96 + generator.gamma(2.0, 0.025, count))
    ms[generator.random(count) < 0.008] *= 4  # a stall, of another program or of the clock
    return np.asarray(ms * np.linspace(1, 1 + slowdown, count), np.float64).round(6)


def make_scenario(
    scenario: Any = "single-stream",
    p50: float = 12.0,
    count: int = 600,
    samples: int = 1,
    seed: int = 0,
    slowdown: float = 0.0,
    **changes: Any,
) -> ScenarioResult:
    """One scenario of `count` queries of `samples` samples, measured in three launches."""
    ms = make_latencies(p50, count, seed, slowdown)
    seconds = float(ms.sum()) / 1000
    starts = tuple(launch * count // LAUNCHES for launch in range(LAUNCHES))
    at_ms = np.concatenate([[0.0], np.cumsum(ms)[:-1]]).round().astype(int)
    beats = count // 12
    percentile = 90.0 if scenario == "single-stream" else 99.0
    stop = EarlyStopping(
        percentile, float(np.percentile(ms, percentile + 0.5)), count, 64 if percentile == 90 else 662, 3
    )
    made = ScenarioResult(
        scenario=scenario,
        launches=LAUNCHES,
        samples_per_query=samples,
        queries=count,
        samples=count * samples,
        seconds=seconds,
        throughput_per_s=count * samples / seconds,
        warmup=Warmup(24, 0.5, True),
        latency=make_spread(ms),
        early_stopping=stop if scenario != "offline" else None,
        latencies=Latencies(
            1, starts, tuple(at_ms.tolist()), tuple(ms.tolist()), tuple((np.arange(count) * 7 % 64).tolist())
        ),
        pulse=Pulse(
            tuple(launch * beats // LAUNCHES for launch in range(LAUNCHES)),
            tuple(at_ms[::12][:beats].tolist()),
            tuple(
                (210 + 4 * np.sin(np.arange(beats)) + 210 * slowdown * np.linspace(0, 1, beats))
                .round(2)
                .tolist()
            ),
        ),
        enough=True,
    )
    return replace(made, **changes)


def make_server(**changes: Any) -> ScenarioResult:
    """A server that holds its bound."""
    fields = {"launches": 1, "offered_per_s": 52.0, "bound_ms": 120.0, "holds": True, "mean_batch": 1.7}
    made = make_scenario("server", 21.0, 900, seed=5, **{**fields, **changes})
    return (
        replace(made, throughput_per_s=51.6, seconds=900 / 51.6)
        if "throughput_per_s" not in changes
        else made
    )


def make_stages(whole: float = 12.0) -> Stages:
    """Shares as a small CPU shows them."""
    shares = {"decode": 0.21, "preprocess": 0.07, "image tower": 0.66, "head": 0.02, "other": 0.04}
    return Stages(
        make_spread(make_latencies(whole, 80, 3)),
        tuple(
            Stage(name, make_spread(make_latencies(whole * share, 80, 10 + i)), share)
            for i, (name, share) in enumerate(shares.items())
        ),
        ("the labels' vectors were ready before the first query",),
    )


def make_sweep(
    values: tuple[int, ...], one: float = 12.0, gain: float = 0.55, most: float = 0.0
) -> tuple[SweepPoint, ...]:
    """Points of a sweep; the call takes `one` ms at 1 and each more adds `gain` of that; above `most` (if any) it fails."""
    points = []
    for value in values:
        ms = make_latencies(one * (1 - gain + gain * value), 60, value)
        if most and value > most:
            points.append(
                SweepPoint(
                    value, 0.0, make_spread(np.zeros(1), 0), "not enough memory: 1.9 GB free, 2.4 GB needed"
                )
            )
        else:
            points.append(SweepPoint(value, value / float(ms.mean()) * 1000, make_spread(ms)))
    return tuple(points)


def make_threads(values: tuple[int, ...] = (1, 2, 4), one: float = 30.0) -> tuple[SweepPoint, ...]:
    """Throughput over threads by Amdahl's law, 85 % of the work shared."""
    spreads = [make_spread(make_latencies(one * (0.15 + 0.85 / value), 60, value)) for value in values]
    return tuple(
        SweepPoint(value, 1000 / spread.mean_ms, spread)
        for value, spread in zip(values, spreads, strict=True)
    )


def make_variants() -> tuple[VariantPoint, ...]:
    """Four that run and one that does not."""
    rows = (
        ("fp32", 8.1, 0.0000012, 0.9999998, 350),
        ("fp16", 8.3, 0.0004, 0.9999, 176),
        ("int8-dynamic", 4.9, 0.034, 0.9991, 90),
    )
    made = [
        VariantPoint(f"image-{name}-decomposed", name.split("-")[0], True, make_spread(make_latencies(ms, 50, i)), far, near, size << 20, "onnxruntime-cpu")
        for i, (name, ms, far, near, size) in enumerate(rows)
    ]  # fmt: skip
    made.append(
        VariantPoint(
            "image-int4",
            "int4",
            True,
            make_spread(make_latencies(7.4, 50, 9)),
            None,
            None,
            52 << 20,
            "onnxruntime-cpu",
        )
    )
    refused = "onnxruntime-cpu: no kernel for MatMulNBits of 3 bits"
    made.append(VariantPoint("image-int3", "int4", False, None, 0.2, 0.97, 40 << 20, "", refused))
    return tuple(made)


def make_cold() -> tuple[ColdStart, ...]:
    """Both kinds of cold start."""
    return (
        ColdStart("empty caches", 5, 210.0, 640.0, 95.0, 962.0, 941.0, 1080.0),
        ColdStart("label pack", 5, 208.0, 410.0, 19.0, 655.0, 640.0, 690.0),
    )


def make_roof(**changes: Any) -> Roof:
    """One tower of some 8.8 G operations."""
    parts = {
        "MatMul": 0.71,
        "Softmax": 0.09,
        "LayerNormalization": 0.06,
        "Gelu": 0.06,
        "Add": 0.04,
        "Transpose": 0.04,
    }
    made = Roof(
        "image", "image-fp32-decomposed", "fp32", 1, 8_800_000_000, 350 << 20, 65.0, 135.4, 190.0, 0.71, 18.0, 0.31, "compute", parts
    )  # fmt: skip
    return replace(made, **changes)


def make_state(throttled: bool | None = False, gpu: bool = False, seconds: float = 60.0) -> State:
    """Temperatures, clocks and powers, one reading each half second."""
    at = np.arange(0, seconds, 0.5)
    rise = 1 - np.exp(-at / 12)
    fall = np.where(at > 0.6 * seconds, 0.7, 1.0) if throttled else np.ones_like(at)

    def series(name: str, unit: str, values: NDArray[Any]) -> Series:
        return Series(name, unit, tuple(at.tolist()), tuple(values.round(2).tolist()))

    made = [
        series("cpu clock", "MHz", 3400 * fall + 20 * np.sin(at)),
        series("cpu temperature", "°C", 42 + (44 if throttled else 25) * rise),
    ]
    if gpu:
        made += [
            series("gpu clock", "MHz", 1980 * fall),
            series("gpu temperature", "°C", 35 + 30 * rise),
            series("gpu power", "W", 70 + 280 * rise + 5 * np.sin(at * 3)),
        ]
    flags = (
        ("the CPU's clock fell by 30 % during the run", "the CPU reached 86 °C of its limit of 85 °C")
        if throttled
        else ()
    )
    power = (68.0, 331.0, "NVML") if gpu else (None, None, None)
    return State(tuple(made), throttled, flags, power[2], power[0], power[1], 0.31, 0.004, 0.02)


def make_device(gpu: bool = False) -> Device:
    """A small machine, or one with a GPU."""
    cards = (Gpu("NVIDIA H100 80GB HBM3", "570.86.15", 80 << 30, 700.0, 1980.0),) if gpu else ()
    return Device(
        name="NVIDIA H100 80GB HBM3" if gpu else "Intel(R) Xeon(R) CPU @ 2.80GHz",
        cpu="Intel(R) Xeon(R) CPU @ 2.80GHz",
        cores=2,
        logical_cores=4,
        cpu_flags=("avx2", "avx512f", "avx512_vnni"),
        memory_bytes=22 << 30,
        gpus=cards,
        system="Linux 6.1.0 x86_64",
        python="3.11.2",
        packages={"onnxruntime": "1.23.2", "numpy": "2.2.1", "opencv": "4.12.0"},
        governor="performance",
        power_mode=None,
        virtual="kvm",
    )


def make_report(*, gpu: bool = False, throttled: bool | None = False, **changes: Any) -> Report:
    """A whole report: every part is there. `changes` replace fields of Report."""
    engine = "onnxruntime-cuda" if gpu else "onnxruntime-cpu"
    provider = "CUDAExecutionProvider" if gpu else "CPUExecutionProvider"
    slow = 0.4 if throttled else 0.0
    energy = 0.41 if gpu else None
    missing = (
        {}
        if gpu
        else {"state.power": "no RAPL, INA3221 or NVML could be read", "memory.device_bytes": "no GPU"}
    )
    made = Report(
        created="2026-11-26T04:10:00Z",
        edgeclip="0.1.0",
        seconds=412.5,
        subject=Subject(
            bundle="clip-b32",
            name="openai/clip-vit-base-patch32",
            model_id="5f" * 32,
            digest="a1" * 32,
            family="clip",
            size_bytes=612 << 20,
            towers=(
                TowerUsed("image", engine, provider, "image-fp32-decomposed", "fp32", "c3" * 32),
                TowerUsed("text", engine, provider, "text-fp32-decomposed", "fp32", "d4" * 32),
            ),
            threads=2,
        ),
        settings=preset("quick"),
        device=make_device(gpu),
        inputs=PictureSet("pictures", 64, 151_203, 307_200, "e5" * 32),
        scenarios=(
            make_scenario("single-stream", 12.0, 600, slowdown=slow, energy_j=energy),
            make_scenario("multi-stream", 81.0, 90, 8, seed=1, slowdown=slow, energy_j=energy),
            make_scenario("offline", 78.0, 100, 8, seed=2, slowdown=slow, energy_j=energy),
            make_server(),
        ),
        stages=make_stages(),
        batches=make_sweep((1, 2, 4, 8, 16)),
        threads=make_threads(),
        variants=make_variants(),
        cold=make_cold(),
        memory=Memory(640 << 20, 811 << 20, (2 << 30) if gpu else None, 702 << 20),
        roofline=(
            make_roof(),
            make_roof(tower="text", variant="text-fp32-decomposed", operations=500_000_000, weight_bytes=250 << 20, ms=16.0, gflops=31.2, share_of_peak=0.16, share_of_copy=0.91, bound="memory", by_operator={}),
        ),
        state=make_state(throttled, gpu),
        harness_us=0.9,
        warnings=("the CPU's clock fell while this ran: the figures hold for a hot device",) if throttled else (),
        not_measured=missing,
    )  # fmt: skip
    return replace(made, **changes)


def make_bare_report(**changes: Any) -> Report:
    """As little as a report can hold: one scenario too short for intervals, and nothing else could be measured."""
    ms = make_latencies(12.0, 12)
    scenario = make_scenario(
        count=12, latency=make_spread(ms, 0), latencies=None, pulse=None, enough=False, launches=1,
        early_stopping=EarlyStopping(90.0, None, 12, 64, 0), notes=("stopped after 12 queries",),
    )  # fmt: skip
    device = replace(make_device(), governor=None, virtual=None, packages={}, cpu_flags=())
    whole = make_report()
    return replace(
        whole,
        **{
            "subject": replace(whole.subject, fell_back="onnxruntime-cuda: no GPU"),
            "device": device,
            "inputs": PictureSet("generated", 32, 40_000, 150_528, "f6" * 32),
            "scenarios": (scenario,),
            "stages": None,
            "batches": (),
            "threads": (),
            "variants": (),
            "cold": (),
            "memory": None,
            "roofline": (),
            "state": State((), None, (), None, None, None, None, None, None),
            "warnings": ("no pictures were given: generated ones decode otherwise than photographs",),
            "not_measured": {
                "stages": "switched off by --parts",
                "batches": "switched off by --parts",
                "threads": "the engine has no threads to choose",
                "cold": "no second process could be started",
                "memory": "/proc/self/status cannot be read",
                "roofline": "switched off by --parts",
                "variants": "the bundle has one variant",
                "state.temperature": "no sensor: /sys/class/thermal is empty",
                "state.clock": "cpufreq is hidden by the hypervisor",
                "state.power": "no RAPL, INA3221 or NVML could be read",
            },
            **changes,
        },
    )


def make_change(metric: str = "p99", scenario: str = "single-stream", **changes: Any) -> Change:
    """B is 12 % slower, surely."""
    made = Change(scenario, metric, "ms", 14.0, 15.68, 0.12, 0.09, 0.15, "worse", 0.03, "p99>+5%", True)
    return replace(made, **changes)


def make_comparison(**changes: Any) -> Comparison:
    """One gate failed, one figure better, one undecided, one exact."""
    passed = {"gate": "", "failed": False}
    made = Comparison(
        created="2026-11-26T05:00:00Z",
        how="reports",
        a="clip-b32 fp32, 26 November 04:10",
        b="clip-b32 int8, 26 November 04:40",
        changes=(
            make_change(),
            make_change("p50", change=-0.31, a=12.0, b=8.28, low=-0.33, high=-0.29, verdict="better", **passed),
            make_change("throughput", unit="/s", change=0.02, a=82.0, b=83.6, low=-0.03, high=0.07, verdict="undecided", note="A has 12 queries only", **passed),
            make_change("p99", "multi-stream", change=0.004, a=90.0, b=90.4, low=-0.02, high=0.025, verdict="same", gate="p99>+5%", failed=False),
            make_change("size", "", unit="MB", change=-0.74, a=350.0, b=90.0, low=None, high=None, verdict="better", resolution=None, **passed),
        ),
        machine=0.013,
        failed=True,
        notes=("B ran on a machine 1.3 % slower by its pulse; the changes are as measured",),
    )  # fmt: skip
    return replace(made, **changes)


def make_matrix(**changes: Any) -> Matrix:
    """Two engines, two variants, two batches; what cannot run has its reason."""
    cells = []
    for v, (variant, precision, ms) in enumerate(
        (("image-fp32-decomposed", "fp32", 9.0), ("image-int8", "int8", 5.0))
    ):
        for batch in (1, 8):
            spread = make_spread(make_latencies(ms * (0.4 + 0.6 * batch), 60, v * 10 + batch))
            cells.append(
                Cell(
                    "onnxruntime-cpu",
                    variant,
                    precision,
                    batch,
                    "done",
                    "",
                    "CPUExecutionProvider",
                    spread,
                    batch / spread.mean_ms * 1000,
                    310.0,
                    700 << 20,
                    (350 >> (2 * v)) << 20,
                    (1e-6, 0.03)[v],
                    8.0,
                )
            )
            cells.append(
                Cell(
                    "onnxruntime-cuda",
                    variant,
                    precision,
                    batch,
                    "failed",
                    "onnxruntime-cuda: no NVIDIA GPU here",
                )
            )
    report = make_report()
    made = Matrix("2026-11-26T05:30:00Z", "0.1.0", "clip-b32", report.subject.model_id, report.subject.digest, report.device, report.settings, tuple(cells))  # fmt: skip
    return replace(made, **changes)
