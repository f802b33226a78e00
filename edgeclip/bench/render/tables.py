"""What a report says, as tables and sentences: the same for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence

from edgeclip.bench.render.grid import Grid, grid
from edgeclip.bench.render.words import a_few, fixed, interval, number, percent, size
from edgeclip.bench.report import Device, Report, ScenarioResult, SweepPoint

Facts = list[tuple[str, str]]  # name, text

# scenario -> what MLPerf judges it by
METRICS = {"single-stream": "p90", "multi-stream": "p99", "offline": "throughput", "server": "p99"}


def missing(report: Report, key: str) -> str:
    """Why a field is None, as the report says of it or of what it belongs to."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if reason := report.not_measured.get(".".join(parts[:end])):
            return f"not measured: {reason}"
    return "not measured"


def absent(report: Report, key: str, *said: str) -> list[str]:
    """All that was not measured of one part, but for what is `said` elsewhere."""
    return [
        f"{name.partition('.')[2] or name}: not measured: {reason}"
        for name, reason in report.not_measured.items()
        if (name == key or name.startswith(f"{key}.")) and name not in said
    ]


def samples(report: Report) -> str:
    """What a sample is: "pictures" or "texts"."""
    return "texts" if report.inputs.kind == "texts" else "pictures"


def headline(result: ScenarioResult, unit: str) -> str:
    """The figure that a scenario is judged by, with its interval."""
    if result.scenario == "offline":
        return f"{number(result.throughput_per_s)} {unit}/s"
    metric = METRICS[result.scenario]
    text = f"{metric} {interval(getattr(result.latency, metric))} ms"
    return f"{text}; {bound(result)}" if bound(result) else text


def bound(result: ScenarioResult) -> str:
    """Of a server: whether its p99 keeps what was asked for, and at which rate."""
    if result.bound_ms is None:
        return ""
    held = {True: "held", False: "broken", None: "not judged"}[result.holds]
    return f"bound of {number(result.bound_ms)} ms {held} at {number(result.offered_per_s)}/s"


def scenarios(report: Report) -> Grid:
    """One row each scenario."""
    rows = []
    for result in report.scenarios:
        stop, spread = result.early_stopping, result.latency
        most = "-"
        if stop is not None:
            most = (
                f"p{stop.percentile:g} {fixed(stop.ms)} ms"
                if stop.ms is not None
                else f"needs {a_few(stop.queries_needed, 'query')}"
            )
        rows.append(
            (
                result.scenario, headline(result, samples(report)), interval(spread.p50), interval(spread.p90), interval(spread.p99),
                number(result.throughput_per_s), f"{result.queries:,}", most, number(result.energy_j),
                "enough" if result.enough else "too short",
            )
        )  # fmt: skip
    unit = samples(report)
    head = f"scenario|result|p50 ms|p90 ms|p99 ms|{unit}/s|queries|at most (99 % sure)|J|evidence"
    notes = [f"{result.scenario}: {note}" for result in report.scenarios for note in result.notes]
    return grid("Scenarios", head, rows, notes, "result|evidence")


def stages(report: Report) -> Grid | None:
    """Where the time of one call goes."""
    if report.stages is None:
        return None
    whole = report.stages.whole
    rows = [
        (s.name, percent(s.share), interval(s.time.p50), interval(s.time.p90), interval(s.time.p99))
        for s in report.stages.stages
    ]
    rows.append(("all", "100 %", interval(whole.p50), interval(whole.p90), interval(whole.p99)))
    return grid("Stages of a call", "stage|share|p50 ms|p90 ms|p99 ms", rows, report.stages.notes)


def sweep(report: Report, points: Sequence[SweepPoint], what: str) -> Grid | None:
    """Throughput over batch sizes or threads; points that failed have their reason below."""
    if not points:
        return None
    rows = [
        (f"{p.value}", *(("-",) * 3 if p.failed else (number(p.throughput_per_s), interval(p.latency.p50), interval(p.latency.p99))))
        for p in points
    ]  # fmt: skip
    notes = [f"{what} {point.value}: {point.failed}" for point in points if point.failed]
    title = "Batch sizes" if what == "batch" else "Threads"
    return grid(title, f"{what}|{samples(report)}/s|p50 ms|p99 ms", rows, notes)


def cold(report: Report) -> Grid | None:
    """From starting a process to its first result."""
    if not report.cold:
        return None
    rows = [
        (c.kind, fixed(c.import_ms), fixed(c.load_ms), fixed(c.first_ms), f"{fixed(c.total_ms)} ({fixed(c.low_ms)}–{fixed(c.high_ms)})", str(c.runs))
        for c in report.cold
    ]  # fmt: skip
    notes = [f"{c.kind}: {note}" for c in report.cold for note in c.notes]
    return grid("Cold start", "start|import ms|load ms|first ms|total ms|runs", rows, notes)


def memory(report: Report) -> Facts:
    """Memory and size on disk."""
    facts = [("bundle on disk", size(report.subject.size_bytes))]
    if (found := report.memory) is None:
        return [*facts, ("memory", missing(report, "memory"))]
    named = (
        ("resident", "rss_bytes"),
        ("resident, peak", "peak_rss_bytes"),
        ("on the device", "device_bytes"),
    )
    for name, field in named:
        value = getattr(found, field)
        facts.append((name, missing(report, f"memory.{field}") if value is None else size(value)))
    if found.device_bytes is None and not report.device.gpus:
        facts[-1] = ("on the device", "no GPU")
    return [*facts, ("estimated by inspect --memory", size(found.estimated_bytes))]


def roofline(report: Report) -> Grid | None:
    """The share of what the device can do."""
    if not report.roofline:
        return None
    rows = [
        (r.tower, r.precision, str(r.batch), fixed(r.ms), number(r.operations / 1e9), number(r.gflops), number(r.peak_gflops), percent(r.share_of_peak), number(r.copy_gb_per_s), percent(r.share_of_copy), r.bound)
        for r in report.roofline
    ]  # fmt: skip
    head = "tower|precision|batch|ms|GFLOP|GFLOP/s|peak GFLOP/s|of peak|copy GB/s|reading weights|bound by"
    notes = [f"{r.tower}: {note}" for r in report.roofline for note in r.notes]
    return grid("Roofline", head, rows, notes, "precision|bound by")


def variants(report: Report) -> Grid | None:
    """Fidelity against speed."""
    if not report.variants:
        return None
    rows = [
        (v.id, v.precision, interval(v.latency.p50) if v.latency else "-", number(v.relative_distance), "-" if v.cosine_min is None else f"{v.cosine_min:.6f}", size(v.size_bytes), v.engine or "-")
        for v in report.variants
    ]  # fmt: skip
    notes = [f"{v.id}: {v.failed or 'does not run here'}" for v in report.variants if v.failed or not v.runs]
    head = "variant|precision|p50 ms|distance|cosine min|size|engine"
    return grid("Variants", head, rows, notes, "precision|engine")


def in_brief(report: Report) -> str:
    """What was measured, in a line: "classify by onnxruntime-cpu in fp32, 2 threads, AMD EPYC"."""
    found = report.subject
    engines = dict.fromkeys(f"{t.engine} in {t.precision}" for t in found.towers)
    return f"{report.settings.task} by {' and '.join(engines)}, {a_few(found.threads, 'thread')}, {report.device.name}"


def subject(report: Report) -> Facts:
    """What ran, and on what."""
    found, sets = report.subject, report.settings
    facts = [("model", f"{found.name} ({found.family}), bundle {found.bundle}, {size(found.size_bytes)}")]
    facts += [
        (f"{t.tower}", f"{t.precision} on {t.provider} by {t.engine}, variant {t.variant}")
        for t in found.towers
    ]
    if found.fell_back:
        facts.append(("fell back", found.fell_back))
    chosen = a_few(found.threads, "thread")
    inputs = report.inputs
    facts.append(("task", f"{sets.task}; {chosen}; {sets.decode} decoding; settings: {sets.preset}"))
    what = {"pictures": "picture", "generated": "generated picture", "texts": "text"}[inputs.kind]
    median = f", median {size(inputs.median_bytes)}" + (
        f" and {number(inputs.median_pixels / 1e6)} megapixels" if inputs.median_pixels else ""
    )
    facts.append(
        (
            "inputs",
            f"{a_few(inputs.count, what)}{median if inputs.count else ''}; SHA-256 {inputs.sha256[:12]}",
        )
    )
    return [*facts, *device_facts(report.device)]


def device_facts(device: Device) -> Facts:
    """The machine."""
    cores = f"{a_few(device.cores, 'core')} ({device.logical_cores} logical), {size(device.memory_bytes)}"
    name = device.cpu if device.name == device.cpu else f"{device.name}, {device.cpu}"
    facts = [("device", f"{name}, {cores}")]
    for gpu in device.gpus:
        limit = "" if gpu.power_limit_w is None else f", limit {number(gpu.power_limit_w)} W"
        clock = "" if gpu.max_clock_mhz is None else f", up to {number(gpu.max_clock_mhz)} MHz"
        facts.append(("gpu", f"{gpu.name}, {size(gpu.memory_bytes)}, driver {gpu.driver}{limit}{clock}"))
    virtual = {None: "", "": "on bare metal"}.get(device.virtual, f"in {device.virtual}")
    mode = [
        f"governor {device.governor or 'not known'}",
        f"power mode {device.power_mode}" * bool(device.power_mode),
        virtual,
    ]
    facts.append(("mode", "; ".join(filter(None, mode))))
    versions = ", ".join(f"{name} {version}" for name, version in device.packages.items())
    facts.append(("software", ", ".join(filter(None, (device.system, f"Python {device.python}", versions)))))
    return facts


def doubts(report: Report) -> list[str]:
    """What the reader must know before any figure: most serious first, each once."""
    found = (
        ["the device throttled: its clocks were held down while this ran"] if report.state.throttled else []
    )
    late = [r.scenario for r in report.scenarios if r.holds is False]
    found += [f"{name}: p99 is above its bound at this rate" for name in late]
    return list(dict.fromkeys([*found, *report.state.flags, *report.warnings]))


def state(report: Report) -> Facts:
    """How the device was, in figures."""
    found = report.state
    told = {True: "yes", False: "no", None: missing(report, "state.throttled")}[found.throttled]
    facts = [("throttled", told)]
    powers = f"{number(found.mean_power_w)} W, {number(found.idle_power_w)} W idle, by {found.energy_source}"
    facts.append(("power", missing(report, "state.power") if found.mean_power_w is None else powers))
    for name, value in (("load before", found.load_before), ("stolen by other guests", found.stolen_share), ("other programs", found.other_cpu_share)):  # fmt: skip
        key = {"load before": "load_before", "stolen by other guests": "stolen_share", "other programs": "other_cpu_share"}[name]  # fmt: skip
        shown = number(value) if name == "load before" else f"{percent(value)} of the CPU"
        facts.append((name, missing(report, f"state.{key}") if value is None else shown))
    return facts
