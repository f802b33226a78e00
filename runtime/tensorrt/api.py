"""Build a bundle's engines: graph chosen, memory checked, built, judged, proved where a GPU is, kept.

    build_engines(open_bundle("clip-b32"), "tensorrt", BuildSettings(precision="fp16"))

One engine at a time: a builder takes several times the memory of its graph. `edgeclip.build_engines` is this one with a converter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import CheckFailed, EdgeClipError, EngineError
from edgeclip.runtime.cuda import Device, devices, find
from edgeclip.runtime.engines.seam import EngineOptions
from edgeclip.runtime.tensorrt.builder import Built, build, check_options, parse_batch, profiles_for
from edgeclip.runtime.tensorrt.caches import read_cache, write_cache
from edgeclip.runtime.tensorrt.graphs import Graph, graph_of, same_graph
from edgeclip.runtime.tensorrt.library import Library, load_library
from edgeclip.runtime.tensorrt.memory import check_memory
from edgeclip.runtime.tensorrt.network import judge, remarks
from edgeclip.runtime.tensorrt.plan import Candidate, Job, jobs_for
from edgeclip.runtime.tensorrt.record import BuildOptions, Record, place
from edgeclip.runtime.tensorrt.settings import FOUND, BuildSettings, Converter, Tell, quiet
from edgeclip.runtime.tensorrt.store import Store, store_of
from edgeclip.version import __version__

log = logging.getLogger(__name__)

# GPUs that are built for where there is none and none is named, by precision. All of them cost a ViT-B/32 1 s and no byte more than
# one. Not sm75, which lacks kernels of bf16, nor sm121, whose machines are no x86.
AHEAD: Mapping[str, tuple[str, ...]] = {"": ("sm80", "sm86", "sm89", "sm120"), "fp8": ("sm89", "sm120")}
INSTEAD = "instead of"  # how the note of an engine begins whose graph was not the first choice


def build_engines(
    bundle: Bundle,
    target: str,
    settings: BuildSettings | None = None,
    *,
    converter: Converter | None = None,
    tell: Tell = quiet,
) -> list[Record]:
    """Build an engine for each tower of a bundle, unless the store has it.

    Args:
        target: "tensorrt" or "tensorrt-rtx".
        converter: makes graphs of a precision that the bundle lacks; None: such a precision is refused.
        tell: called with (what is built, what is being done, share done from 0 to 1).
    Returns:
        A record for each engine, built now or found in the store.
    Raises:
        MissingExtraError: the library is not installed, or graphs cannot be converted here.
        InputError: settings that cannot be met.
        EngineError: no GPU, too little memory, or the library refuses every graph; says why.
        CheckFailed: the engine is not what its graph promises, or gives other embeddings.
    """
    library = load_library(target)
    settings = settings or BuildSettings()
    batches = [parse_batch(text) for text in settings.batches]
    device, settings = _place(library, settings)
    jobs = jobs_for(bundle, settings, library, converter)
    store = store_of(bundle, EngineOptions(engines=settings.output))
    store.prepare()
    building = _Building(bundle, settings, batches, library, device, store, converter, tell)
    return [building.run(job) for job in jobs]


def _place(library: Library, settings: BuildSettings) -> tuple[Device | None, BuildSettings]:
    """-> (the GPU that is built for; None: GPUs that need not be here, the settings with their names)."""
    archs = library.read_archs(settings.archs)
    if archs:
        return None, replace(settings, archs=archs)
    if devices():
        return find(settings.device), settings
    if library.ahead_of_time:
        archs = AHEAD.get(settings.precision, AHEAD[""])
        log.warning(
            "no NVIDIA GPU here: built ahead of time for %s. Choose others with --arch", ", ".join(archs)
        )
        return None, replace(settings, archs=archs)
    raise EngineError(
        f"{library}: builds on the GPU that it builds for, and there is none here. Build on the device, or for RTX cards ahead of "
        "time with --target tensorrt-rtx."
    )


@dataclass(frozen=True)
class _Building:
    """What the engines of one call share."""

    bundle: Bundle
    settings: BuildSettings
    batches: Sequence[tuple[int, int, int]]
    library: Library
    device: Device | None
    store: Store
    converter: Converter | None
    tell: Tell

    def run(self, job: Job) -> Record:
        """The first engine of a job that can be had, and is what its graph promises."""
        reasons: list[str] = []
        if not self.settings.rebuild and (found := self._found(job)):
            return found
        *others, last = job
        for candidate, then in zip(others, job[1:], strict=True):
            try:
                return self._built(candidate, reasons, "fail")
            except (EngineError, CheckFailed) as error:
                log.warning("%s. Next: %s", str(error).rstrip("."), then.variant.id)
                reasons.append(f"{INSTEAD} {candidate.variant.id}: {error}")
        return self._built(last, reasons, self.settings.on_shortfall)

    def _found(self, job: Job) -> Record | None:
        """The job's engine in the store, every byte of it verified; None: there is none, or it is to be built again, which is said."""
        for candidate in job:
            options = self._options(candidate.variant)
            for record in self.store.find(
                library=self.library, device=self.device, variant=candidate.variant.id, options=options
            ):
                preferred = candidate is job[0] or any(note.startswith(INSTEAD) for note in record.notes)
                short = judge(record.variant, record.network, record.engine)
                unwanted = (
                    short and self.settings.on_shortfall == "fail"
                )  # it was kept by a build that only reports
                if not preferred or unwanted or not same_graph(record, candidate):
                    continue
                try:
                    self.store.plan(record, self.library, self.device)
                    if self.device is not None and record.proved_on != place(
                        self.library.version, self.device
                    ):
                        record = self._proved(record, self.settings.on_shortfall)
                except EngineError as error:
                    log.warning("built again: %s", str(error).partition(" Run: ")[0])
                    return None
                self.tell(candidate.variant.id, FOUND, 1.0)
                return record
        return None

    def _built(self, candidate: Candidate, reasons: Sequence[str], on_shortfall: str) -> Record:
        name, options = candidate.variant.id, self._options(candidate.variant)
        check_options(self.library, candidate.variant, options)
        archs = self.settings.archs or ((self.device.arch,) if self.device else ())
        with graph_of(
            candidate, self.bundle, self.store, self.library, archs, self.converter, lambda step: self.tell(name, step, 0.0)
        ) as graph:  # fmt: skip
            check_memory(self.library, graph.path, graph.variant, options, force=self.settings.force)
            built = self._build(graph, options)
            short = _judged(judge(graph.variant, built.network, None), name, on_shortfall)
            graph = graph.keep(self.store)
        record = Record(
            library=self.library.name, version=self.library.version, platform="", device=self.device, bundle=self.bundle.digest,
            variant=graph.variant, graphs=graph.digests, options=options, size=0, sha256="", network=built.network,
            made_from=candidate.base.id if candidate.base else "", notes=(*reasons, *graph.notes, *short), seconds=built.seconds,
            created_by=f"edgeclip {__version__}", provenance=candidate.facts,
        )  # fmt: skip
        record = self.store.put(record, built.plan)
        return record if self.device is None else self._proved(record, on_shortfall)

    def _build(self, graph: Graph, options: BuildOptions) -> Built:
        """With the timings of earlier builds on this GPU, where the library keeps such."""
        name, folder = graph.variant.id, self.store.folder
        facts = (self.library.name, self.library.version, self.device.name if self.device else "")
        timings = read_cache(folder, "timing", *facts) if self.library.has("timing_cache") else None
        try:
            built = build(
                self.library, graph.path, graph.variant, options, timing_cache=timings,
                tell=lambda doing, done: self.tell(name, doing, done), device=self.device.index if self.device else None,
            )  # fmt: skip
        except EngineError as error:  # the place of a graph that was just made means nothing to anybody
            raise EngineError(str(error).replace(str(graph.path), name)) from error
        if built.timing_cache is not None:
            write_cache(folder, "timing", built.timing_cache, *facts)
        return built

    def _options(self, variant: Variant) -> BuildOptions:
        settings = self.settings
        return BuildOptions(
            profiles=profiles_for(variant, self.bundle.manifest, self.batches), archs=settings.archs,
            workspace=settings.workspace, level=settings.level, tf32=settings.tf32, version_compatible=settings.version_compatible,
            hardware_compatible=settings.hardware_compatible, strip_weights=settings.strip_weights, low_memory=settings.low_memory,
        )  # fmt: skip

    def _proved(self, record: Record, on_shortfall: str) -> Record:
        """Opened on the device: inspected, the golden inputs replayed. What falls short is not kept."""
        from edgeclip.runtime.engines import open_variant

        self.tell(record.variant.id, "prove on the device", 1.0)
        options = EngineOptions(device=self.device.index if self.device else 0, engines=self.store.folder)
        try:
            open_variant(self.library.name, self.bundle, record.variant, options).close()
            (proved, *_) = self.store.find(
                library=self.library, device=self.device, variant=record.variant.id, options=record.options
            )
            known = set(record.notes)
            new = [line for line in judge(proved.variant, proved.network, proved.engine) if line not in known]
            notes = _judged(new, record.variant.id, on_shortfall, said=True)
        except EdgeClipError:
            self.store.remove(record)
            raise
        notes += tuple(line for line in remarks(proved.variant, proved.engine) if line not in known)
        if notes:
            proved = replace(proved, notes=(*proved.notes, *notes))
            self.store.update(proved)
        return proved


def _judged(
    shortfalls: Sequence[str], name: str, on_shortfall: str, *, said: bool = False
) -> tuple[str, ...]:
    """The shortfalls as notes. `said`: whoever opened the engine has warned of them. Raises CheckFailed where they are not wanted."""
    if shortfalls and on_shortfall == "fail":
        more = f" (and {len(shortfalls) - 1} more)" if len(shortfalls) > 1 else ""
        raise CheckFailed(
            f"{name}: {shortfalls[0]}{more}. It is not kept; pass --on-shortfall report to keep such engines"
        )
    for line in () if said else shortfalls:
        log.warning("%s: %s", name, line)
    return tuple(shortfalls)
