"""What may be chosen about a build of engines, and what makes the graphs that a bundle lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from edgeclip.bundle import Bundle, Variant
from edgeclip.runtime.tensorrt.library import Library

Tell = Callable[[str, str, float], None]  # (what is built, what is being done, share done from 0 to 1)
PRECISION = (
    "fp16"  # when none is named: every GPU that TensorRT serves is fastest in it, and the fp32 sum stays
)
FOUND = "already built"  # what Tell is told of an engine that is in the store


def quiet(what: str, doing: str, done: float) -> None:
    """A `Tell` that says nothing."""


@dataclass(frozen=True)
class BuildSettings:
    """Everything that may be chosen about a build."""

    precision: str = ""  # "": PRECISION, or that of each variant that is named
    towers: tuple[str, ...] = ()  # "image", "text"; (): every one of the bundle
    variants: tuple[str, ...] = ()  # ids of the bundle's graphs; (): chosen by rule
    batches: tuple[str, ...] = ("1:8:32",)  # least:best:most, an optimisation profile for each
    device: int = 0  # number of the GPU to build for and prove on, in CUDA's order
    archs: tuple[str, ...] = ()  # TensorRT-RTX: GPUs to build for, e.g. ("sm86",); (): this machine's
    workspace: int = 0  # bytes; 0: the library's own limit
    level: int | None = None  # 0-5, how long to search for kernels; None: the library's own
    tf32: bool = False
    low_memory: bool = False
    version_compatible: bool = False
    hardware_compatible: Literal["", "ampere+", "same"] = ""
    strip_weights: bool = False
    on_shortfall: Literal["fail", "report"] = "fail"  # where an engine is not what its graph promises
    rebuild: bool = False  # also what is in the store
    output: Path | None = None  # folder of the store; None: the bundle's own in the cache
    force: bool = False  # although the memory looks too small


@dataclass(frozen=True)
class Made:
    """A graph that was made beside the engine, and written."""

    variant: Variant  # its files are names inside the folder that it was written to
    notes: tuple[str, ...] = ()


class Converter(Protocol):
    """Makes graphs that the bundle lacks; needs onnx. See export/prepare.py."""

    def plan(self, base: Variant, precision: str) -> Variant:
        """What a conversion would be called. Raises EdgeClipError where it cannot be made here."""

    def facts(self, base: Variant, precision: str) -> dict[str, str]:
        """What it depends on besides the bundle."""

    def convert(
        self, bundle: Bundle, base: Variant, precision: str, library: Library, archs: Sequence[str], folder: Path,
        tell: Callable[[str], None],
    ) -> Made:  # fmt: skip
        """Make, check, measure and write it. Raises EdgeClipError."""
