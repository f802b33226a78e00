"""Whether a build fits into the memory that is free, asked before it starts: a board that runs out kills whatever runs on it.

Peak resident memory of a whole process, TensorRT-RTX 1.7.1, x86-64, without a GPU, batches 1:8:32, one or two GPUs built for alike:
    importing the library        179 MiB
    toy, 0.1 MB of weights       233
    nano image, 9 MB             286
    ViT-B/32 image, fp16, 168    882      3.6 times the weights and 280 MiB
    ViT-B/32 image, fp32, 335    1,403    3.3 times
The preset for little memory changes none of these: it bounds what kernels take on a device while they are tried.
"""

from __future__ import annotations

from pathlib import Path

from edgeclip.bundle import Variant
from edgeclip.errors import EngineError
from edgeclip.runtime.memory import available_memory
from edgeclip.runtime.tensorrt.builder import LOW_MEMORY_WORKSPACE
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.record import BuildOptions

_FACTOR = 3.6  # the file as it is mapped, the parser's copy, the compiler's, the plan
_FIXED = 280 << 20
_DEVICE = (
    1 << 30
)  # TensorRT proper: CUDA's context and the kernels' code. Assumed, not measured: it could not be run
_SCRATCH = 1 << 30  # that kernels take while they are tried, unless it is bounded. Assumed

_TEGRA = ("etc/nv_tegra_release", "proc/device-tree/model")  # of JetPack 6; of every board


def shares_memory(root: Path = Path("/")) -> bool:
    """Whether CPU and GPU share one memory, as on every Jetson."""
    release, model = (root / name for name in _TEGRA)
    try:
        return release.exists() or b"NVIDIA" in model.read_bytes()
    except OSError:
        return False


def needed_memory(
    library: Library, graph: Path, variant: Variant, options: BuildOptions, *, shared: bool
) -> int:
    """Bytes of RAM that a build takes at its peak.

    Args:
        graph: the ONNX file, with the variant's other files beside it.
        shared: the GPU takes its part from the same RAM.
    """
    files = [graph, *(graph.parent / Path(name).name for name in variant.files[1:])]
    weights = sum(file.stat().st_size for file in files if file.exists())
    needed = int(weights * _FACTOR) + _FIXED
    if not library.ahead_of_time:
        needed += _DEVICE
        if shared:
            bounded = options.workspace or (LOW_MEMORY_WORKSPACE if options.low_memory else _SCRATCH)
            needed += weights + bounded
    return needed


def check_memory(
    library: Library,
    graph: Path,
    variant: Variant,
    options: BuildOptions,
    *,
    force: bool = False,
    root: Path = Path("/"),
) -> None:
    """Refuse a build that would not fit. Free swap counts as memory.

    Args:
        force: build all the same.
        root: of the file system that tells what is free.
    Raises:
        EngineError: too little is free; says how much, and what to do.
    """
    shared = shares_memory(root)
    needed = needed_memory(library, graph, variant, options, shared=shared)
    free = available_memory(root, swap=True)
    if force or free is None or free >= needed:
        return
    ways = ["close other programs", "add swap"]
    if shared and not library.ahead_of_time and not options.low_memory:
        ways.insert(0, "build with --low-memory")
    raise EngineError(
        f"{graph}: building needs about {needed >> 20} MiB of memory, {free >> 20} MiB are free. "
        f"{', '.join(ways).capitalize()}, or pass --force."
    )
