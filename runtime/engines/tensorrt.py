"""TensorRT through its own Python API: engines that were built on this machine, verified, proved, then run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import EdgeClipError, EngineError
from edgeclip.runtime import cuda
from edgeclip.runtime.engines.seam import EngineOptions
from edgeclip.runtime.engines.tensorrt_engine import TensorRt
from edgeclip.runtime.tensorrt.caches import read_cache, write_cache
from edgeclip.runtime.tensorrt.library import LIBRARIES, Library, load_library
from edgeclip.runtime.tensorrt.messages import in_words, listening, made
from edgeclip.runtime.tensorrt.record import Record, place
from edgeclip.runtime.tensorrt.store import Store, store_of

NAME = "tensorrt"
# Provider options: "0" queues the work of each call piece by piece; the libnvinfer_lean.so of the release that built an engine.
CUDA_GRAPH, LEAN_RUNTIME = "cuda_graph", "lean_runtime"

log = logging.getLogger(__name__)


def present() -> bool:
    """Whether the library, cuda-bindings and an NVIDIA device are here. Starts nothing, so that a process may still fork."""
    return is_present(NAME)


def local_variants(bundle: Bundle, options: EngineOptions) -> list[Variant]:
    """What engines were built for, newest first. Reads records only. Never raises."""
    return store_of(bundle, options).local_variants(name=NAME)


def open_variant(bundle: Bundle, variant: Variant, options: EngineOptions) -> TensorRt:
    """Open the newest engine of a variant; see `open_built`."""
    return open_built(NAME, bundle, variant, options)


def is_present(name: str) -> bool:
    """`present` of either library."""
    return cuda.present() and find_spec(LIBRARIES[name]) is not None


def open_built(name: str, bundle: Bundle, variant: Variant, options: EngineOptions) -> TensorRt:
    """The newest engine of a variant that may run here, verified before it is deserialised, proved before it is given out.

    Args:
        name: of LIBRARIES.
    Raises:
        EngineError: no GPU; no engine, and how to build one; one that cannot be trusted or opened; options that it has not.
        MissingExtraError: a package is not installed.
        CheckFailed: on this GPU the engine does not give what the bundle says.
    """
    graphs = _check(name, options)
    library, device = load_library(name), cuda.find(options.device)
    store = store_of(bundle, options)
    if options.build and not store.find(library=library, device=device, variant=variant):
        _build(name, bundle, variant, options)
    record, plan = store.take(variant, library, device)
    facts = (library.version, device.name, device.driver, record.sha256)
    engine = open_plan(
        library, record, plan, options, lambda: store.graph(record), graphs=graphs,
        kernels=read_cache(store.folder, "runtime", *facts),
        keep=lambda data: write_cache(store.folder, "runtime", data, *facts),
    )  # fmt: skip
    try:
        if record.fidelity is None or record.proved_on != place(library.version, device):
            _prove(bundle, record, engine, store, place(library.version, device))
    except BaseException:
        engine.close()
        raise
    return engine


def open_plan(
    library: Library,
    record: Record,
    plan: bytes,
    options: EngineOptions,
    graph: Callable[[], Any],
    *,
    graphs: bool = True,
    kernels: bytes | None = None,
    keep: Callable[[bytes], None] | None = None,
) -> TensorRt:
    """Deserialise a plan, which executes it as code: of `Store.plan` only.

    Args:
        graph: the verified file that its weights are in, for a plan without them.
        graphs: use CUDA graphs.
        kernels: what the library compiled on this device before; None: nothing.
        keep: keeps what it compiled until it is closed.
    Raises:
        EngineError: TensorRT does not open it; says why.
    """
    what = f"{record.variant.id}: {library.name} {library.version}"
    with cuda.on(options.device), listening() as heard:
        # its engine_host_code_allowed stays False: no code of a plan runs on the CPU
        runtime = first = made(library, "Runtime", heard)
        if record.version != library.version:
            runtime = _lean_runtime(first, f"{what}: built by {record.version}", options)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"{what} cannot open it: {in_words(heard, 'Build it again.')}")
        if record.options.strip_weights:
            refitter = made(library, "Refitter", heard, engine)
            parser = made(library, "OnnxParserRefitter", heard, refitter)
            if not parser.refit_from_file(str(graph())) or not refitter.refit_cuda_engine():
                raise EngineError(f"{what} cannot fill in its weights: {in_words(heard, 'Build it again.')}")
        configure, cache = _configured(library.module, engine, graphs, kernels)
    own = graphs and configure is None
    opened = TensorRt(
        library, record.variant, options, engine, (runtime, first), configure=configure, graphs=own
    )
    if cache is not None and keep is not None:
        opened.on_close = lambda: _keep(cache, kernels, keep)
    return opened


def _lean_runtime(runtime: Any, what: str, options: EngineOptions) -> Any:
    """What runs an engine of an earlier release. Plans leave it out: within one it would be code that opening the plan runs."""
    path = options.provider_options.get(LEAN_RUNTIME)
    if path is None:
        raise EngineError(
            f"{what} for later releases, which run it by that one's libnvinfer_lean.so: pass its path as "
            f"provider_options={{{LEAN_RUNTIME!r}: ...}}, or build again."
        )
    if (lean := runtime.load_runtime(path)) is None:
        raise EngineError(f"{what}, but {path} is not its lean runtime. Pass that release's, or build again.")
    return lean


def _configured(trt: Any, engine: Any, graphs: bool, kernels: bytes | None) -> tuple[Any, Any]:
    """TensorRT-RTX compiles kernels on the device, and swaps better ones in while it runs: it records CUDA graphs itself, for only it
    knows when. -> (settings of contexts, its cache of kernels), or (None, None) for TensorRT.
    """
    if not hasattr(trt, "CudaGraphStrategy"):
        return None, None
    settings = engine.create_runtime_config()
    settings.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    strategy = trt.CudaGraphStrategy
    settings.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if graphs else strategy.DISABLED
    cache = settings.create_runtime_cache()
    if kernels is not None and not cache.deserialize(kernels):
        log.info("kernels that were compiled before do not fit this device or driver any more: compiled anew")
    settings.set_runtime_cache(cache)
    return settings, cache


def _keep(cache: Any, before: bytes | None, keep: Callable[[bytes], None]) -> None:
    """Kernels that were compiled this time are kept for the next; one that is not is compiled again, no more."""
    if (given := cache.serialize()) is None:
        log.info("compiled kernels are not kept: the library does not give them")
        return
    data = bytes(memoryview(given))
    if before is None or len(data) != len(before):
        try:
            keep(data)
        except EdgeClipError as error:
            log.info("compiled kernels are not kept: %s", error)


def _prove(bundle: Bundle, record: Record, engine: TensorRt, store: Store, where: str) -> None:
    """The engine as built, read back, and the golden inputs replayed; written down, so that the next opening need not."""
    from edgeclip.runtime.tensorrt.inspect import read_engine
    from edgeclip.runtime.tensorrt.network import judge
    from edgeclip.runtime.tensorrt.prove import prove

    report = None
    try:
        with cuda.on(engine.device):
            report = read_engine(load_library(record.library).module, engine.engine)
    except EngineError as error:  # its network was judged when it was built; what it gives is judged below
        log.warning("%s: is not inspected: %s", record.variant.id, error)
    for line in judge(record.variant, record.network, report):
        log.warning("%s: %s", record.variant.id, line)
    fidelity = prove(bundle, record.variant, engine, tf32=record.options.tf32)
    store.update(replace(record, engine=report, fidelity=fidelity, proved_on=where))


def _check(name: str, options: EngineOptions) -> bool:
    """Whether to use CUDA graphs. Raises EngineError for options that no TensorRT engine has."""
    unknown = [
        *(key for key in options.provider_options if key not in (CUDA_GRAPH, LEAN_RUNTIME)),
        *options.session_options,
    ]
    value = options.provider_options.get(CUDA_GRAPH, "1")
    if unknown or value not in ("0", "1"):
        given = unknown[0] if unknown else f"{CUDA_GRAPH}={value}"
        raise EngineError(
            f"{name}: no option {given!r}. It has {CUDA_GRAPH}, 0 or 1, and {LEAN_RUNTIME}, a path."
        )
    return value == "1"


def _build(name: str, bundle: Bundle, variant: Variant, options: EngineOptions) -> None:
    from edgeclip.runtime.tensorrt.api import build_engines
    from edgeclip.runtime.tensorrt.settings import BuildSettings

    log.warning("%s: no %s engine was built for this GPU: building it, which takes minutes", variant.id, name)
    named = variant.id in {
        own.id for own in bundle.manifest.variants
    }  # else made beside an engine that is no longer valid
    wanted = (
        BuildSettings(variants=(variant.id,))
        if named
        else BuildSettings(precision=variant.axes.precision, towers=(variant.tower,))
    )
    build_engines(bundle, name, replace(wanted, device=options.device, output=options.engines))
