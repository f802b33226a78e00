"""A graph becomes a plan. One builder for TensorRT 10.3 to 11.x and for TensorRT-RTX: typed graphs only, no flag that 11 removed."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclip.bundle import Variant
from edgeclip.errors import EngineError
from edgeclip.runtime import cuda
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.messages import hushed, in_words, listening, made
from edgeclip.runtime.tensorrt.network import read_network, write_out_attention
from edgeclip.runtime.tensorrt.profiles import check_profiles, parse_batch, profiles_for
from edgeclip.runtime.tensorrt.progress import Progress, Tell, interruptible, monitor_of
from edgeclip.runtime.tensorrt.record import BuildOptions, NetworkReport, Profile

__all__ = ["LOW_MEMORY_WORKSPACE", "Built", "build", "check_options", "parse_batch", "profiles_for"]

# The preset for boards of 8 GB. All of a tower is one compiled region, whose activations are scratch: B/32 at batch 32 takes 56 MB,
# B/16 four times that.
LOW_MEMORY_WORKSPACE = 512 << 20
# Bytes that kernels may take while they are tried. The default is all of the GPU's, on a Jetson all RAM.
_LOW_MEMORY_TACTICS = 1 << 30
_LOW_MEMORY_LEVEL = 2  # try the likeliest kernels only: the library's own 3 compiles others to compare

_log = logging.getLogger(__name__)
_one = threading.Lock()  # a build takes gigabytes: the next waits


@dataclass(frozen=True)
class Built:
    """What a build gives."""

    plan: memoryview  # of bytes, over TensorRT's own memory: 180-360 MB of a ViT-B/32 are not copied
    network: NetworkReport  # as it was parsed
    timing_cache: bytes | None  # for the next build on this GPU; None: this library keeps none
    seconds: float


def build(
    library: Library,
    graph: Path,
    variant: Variant,
    options: BuildOptions,
    *,
    timing_cache: bytes | None = None,
    tell: Tell = lambda phase, share: None,
    device: int | None = None,
) -> Built:
    """Build an engine. Builds of one process wait for each other.

    Args:
        graph: an ONNX file; its external data lies beside it.
        variant: what the bundle says of the graph.
        timing_cache: of an earlier build on the same GPU by the same library; one of another is passed over, and said. Not for
            TensorRT-RTX, where it would change nothing and ask for a GPU.
        tell: hears of each phase and of the share that is done, 0-1, from another thread.
        device: number of the GPU that kernels are tried on; None: none is asked for, as TensorRT-RTX needs none.
    Raises:
        EngineError: options that the library lacks or that do not fit the graph, a graph that it cannot read, or no engine.
        KeyboardInterrupt: Ctrl-C, once TensorRT has given up, which it can between two steps only.
    """
    check_options(library, variant, options)
    if not graph.is_file():
        raise EngineError(f"{graph}: no such file. Export the bundle again.")
    progress = Progress(tell)

    def work() -> Built:
        with cuda.on(device) if device is not None else nullcontext():
            return _build(library, graph, variant, options, timing_cache, progress)

    with _one, hushed():
        return interruptible(work, progress.stop)


def check_options(library: Library, variant: Variant, options: BuildOptions) -> None:
    """Refuse what cannot be built, before anything is read.

    Raises:
        EngineError: a wish that the library lacks; profiles that do not fit the graph; a number out of its range.
    """
    library.read_archs(options.archs)
    if options.version_compatible:
        library.need("version_compatible")
    if options.hardware_compatible:
        library.need(options.hardware_compatible)
    if options.version_compatible and options.strip_weights:
        raise EngineError(
            "version_compatible and strip_weights: a later release runs such an engine by its lean runtime, which cannot refit "
            "weights. Choose one."
        )
    if options.level is not None and not 0 <= options.level <= 5:
        raise EngineError(f"level {options.level}: expected 0 (quick build) to 5 (quick engine).")
    if options.workspace < 0:
        raise EngineError(f"workspace {options.workspace}: expected bytes, or 0 for the library's own limit.")
    check_profiles(variant, options.profiles)


def _build(
    library: Library,
    graph: Path,
    variant: Variant,
    options: BuildOptions,
    timing_cache: bytes | None,
    progress: Progress,
) -> Built:
    started, trt = time.monotonic(), library.module
    with listening() as errors:
        builder = made(library, "Builder", errors)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = made(library, "OnnxParser", errors, network)
        if not parser.parse_from_file(str(graph)):
            raise _unreadable(library, graph, parser, errors)
        inputs = _inputs(graph, network, variant)
        config = _config(library, builder, options)
        for profile in options.profiles:
            config.add_optimization_profile(_profile(builder, inputs, profile))
        _lend_timing_cache(library, config, timing_cache)
        config.progress_monitor = monitor_of(trt, progress)
        write_out_attention(trt, network)
        report = read_network(trt, network)
        plan = builder.build_serialized_network(network, config)
        if progress.error is not None:
            raise progress.error
        if progress.stop.is_set():
            raise EngineError(f"{graph}: the build was stopped.")
        if plan is None:
            how = "Build the variant with decomposed attention, or in another precision."
            raise EngineError(f"{graph}: {library} built no engine. {in_words(errors, how)}")
        cache = bytes(config.get_timing_cache().serialize()) if library.has("timing_cache") else None
    progress.end()
    return Built(memoryview(plan).cast("B"), report, cache, time.monotonic() - started)


def _unreadable(library: Library, graph: Path, parser: Any, errors: list[str]) -> EngineError:
    """The parser's first error, with its node."""
    how = "Use a variant that this release reads, e.g. one with decomposed attention."
    if not parser.num_errors:
        return EngineError(f"{graph}: {library} cannot read it. {in_words(errors, how)}")
    first = parser.get_error(0)
    node = (
        f"node {first.node_name() or first.node()} ({first.node_operator()}): "
        if first.node_operator()
        else ""
    )
    if not node and "MODEL_DESERIALIZE" in first.code().name:
        how = "Is it an ONNX file? Export the bundle again."
    return EngineError(f"{graph}: {library} cannot read it. {node}{in_words([first.desc()], how)}")


def _inputs(graph: Path, network: Any, variant: Variant) -> dict[str, tuple[int | str, ...]]:
    """Name -> shape with symbols, as the variant has it, held to the network that was parsed."""
    parsed = [network.get_input(i) for i in range(network.num_inputs)]
    found = {tensor.name: tuple(tensor.shape) for tensor in parsed}
    wanted = {port.name: port.shape for port in variant.inputs}
    fixed = {
        name: tuple(-1 if isinstance(size, str) else size for size in shape) for name, shape in wanted.items()
    }
    if found != fixed:
        raise EngineError(
            f"{graph}: expected the inputs {fixed} (-1: open), got {found}. This is another graph."
        )
    return wanted


def _config(library: Library, builder: Any, options: BuildOptions) -> Any:
    trt, config = library.module, builder.create_builder_config()
    flags = trt.BuilderFlag
    if not options.tf32:
        # On by default: fp32 would be multiplied with 10 bits of mantissa, 1e-3 off.
        config.clear_flag(flags.TF32)
    if options.version_compatible:
        # Without the second flag the plan holds a library, and opening it runs that library's code.
        config.set_flag(flags.VERSION_COMPATIBLE)
        config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
    if options.hardware_compatible:
        levels = trt.HardwareCompatibilityLevel
        config.hardware_compatibility_level = (
            levels.AMPERE_PLUS if options.hardware_compatible == "ampere+" else levels.SAME_COMPUTE_CAPABILITY
        )
    if options.strip_weights:
        # REFIT_IDENTICAL promises the weights of the graph again: as fast as a plain engine. Plain REFIT is slower, and in 11.3.0
        # may take a bias for zero.
        config.set_flag(flags.STRIP_PLAN)
        config.set_flag(flags.REFIT_IDENTICAL)
    # Else the inspector tells names only, no types.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    workspace, level = options.workspace, options.level
    if options.low_memory:
        workspace = workspace or LOW_MEMORY_WORKSPACE
        level = _LOW_MEMORY_LEVEL if level is None else level
        config.max_aux_streams = 0  # each further stream has activations of its own
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, _LOW_MEMORY_TACTICS)
    if workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if level is not None:
        config.builder_optimization_level = level
    if archs := library.read_archs(options.archs):
        config.num_compute_capabilities = len(archs)
        for i, arch in enumerate(archs):
            config.set_compute_capability(trt.ComputeCapability.__members__[arch.upper()], i)
    return config


def _profile(builder: Any, inputs: dict[str, tuple[int | str, ...]], profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for name, shape in inputs.items():
        shapes = [[profile[size][i] if isinstance(size, str) else size for size in shape] for i in range(3)]
        made.set_shape(name, *shapes)  # least, best, most
    return made


def _lend_timing_cache(library: Library, config: Any, stored: bytes | None) -> None:
    """What was measured in an earlier build: the same kernels are chosen again, in a fraction of the time."""
    if not library.has("timing_cache"):
        return
    if stored:
        cache = config.create_timing_cache(stored)
        # False: refuse one of another GPU or release
        if cache is not None and config.set_timing_cache(cache, False):
            return
        _log.info("%s: the timing cache is of another GPU or release, starting a new one", library)
    config.set_timing_cache(config.create_timing_cache(b""), False)
