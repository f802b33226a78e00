"""What is known of one engine: what it was made from, for what, by what, and what was proven. Kept beside it, under a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgeclip.bundle import Fidelity, Variant
from edgeclip.runtime.cuda import Device

# symbolic size -> (least, best, most), e.g. {"N": (1, 8, 32), "L": (8, 16, 77)}
Profile = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class BuildOptions:
    """Everything that may be chosen about building an engine. Part of what an engine is found by."""

    profiles: tuple[
        Profile, ...
    ]  # each with every symbolic size of the graph; the engine is tuned for each one's best
    archs: tuple[
        str, ...
    ] = ()  # TensorRT-RTX: GPUs to build for ahead of time, e.g. ("sm86", "sm89"); (): this machine's
    workspace: int = 0  # bytes of scratch memory that a kernel may ask for; 0: the library's own limit
    level: int | None = None  # how long to search for kernels, 0-5; None: the library's own
    tf32: bool = False  # let fp32 products round to 10 bits of mantissa
    version_compatible: bool = False  # runs under later releases of the library
    hardware_compatible: Literal["", "ampere+", "same"] = (
        ""  # runs on other GPUs: Ampere and newer; of the same capability
    )
    strip_weights: bool = (
        False  # the plan holds no weights; they are refitted from the graph when it is opened
    )
    low_memory: bool = False  # build slower in less memory, for boards of 8 GB


@dataclass(frozen=True)
class NetworkReport:
    """The network as the parser read it, before the build."""

    layers: int
    products: Mapping[str, int]  # matrix products and convolutions by data type, e.g. {"fp16": 73}
    weights: Mapping[str, int]  # elements of their weights by data type of the product
    attention: int  # attention operators
    types: Mapping[str, int]  # layers by data type of their first output
    unfused: int = 0  # of the attention operators: those that no fused kernel is known for


@dataclass(frozen=True)
class EngineReport:
    """The engine as its inspector describes it, after the build. Read on the device only."""

    layers: int
    types: Mapping[str, int]  # layers by data type of their first output
    fused_attention: int  # kernels of fused attention
    reformats: int  # layers that only change types or layouts
    bytes: int  # of scratch memory on the device
    opaque: int = 0  # compiled regions that the inspector names but does not look into


@dataclass(frozen=True)
class Record:
    """One engine."""

    library: str  # "tensorrt" or "tensorrt-rtx"
    version: str  # of the library that built it
    platform: str  # e.g. "linux-x86_64": plans do not travel
    device: Device | None  # that it was built on; None: ahead of time, on a machine without a GPU
    bundle: str  # digest of the bundle
    variant: Variant  # the graph that it is; of the bundle, or made beside the engine (`made_from`)
    graphs: Mapping[str, str]  # SHA-256 of each file of the graph, by name
    options: BuildOptions
    size: int  # bytes of the plan
    sha256: str  # of the plan
    network: NetworkReport
    engine: EngineReport | None = None
    fidelity: Fidelity | None = (
        None  # golden inputs on the device; None: not replayed yet, which its first opening does
    )
    proved_on: str = ""  # GPU, driver and library of that, see `place`; elsewhere it is replayed again
    made_from: str = ""  # id of the bundle's variant that was converted; "": none was
    notes: tuple[str, ...] = ()  # what the user should know: no fused attention, ...
    seconds: float = 0.0  # that the build took
    created_by: str = ""
    created: str = ""  # UTC, ISO 8601
    provenance: Mapping[str, str] = field(default_factory=dict)  # e.g. of a conversion


def place(version: str, device: Device) -> str:
    """What a proof holds for: the release of the library, the GPU and its driver."""
    return f"{device.name}, {device.memory >> 30} GiB, CUDA {device.driver}, release {version}"
