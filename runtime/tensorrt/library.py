"""TensorRT's two Python packages behind one face. They share their classes; what differs is asked of `Library`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from edgeclip.errors import EngineError, MissingExtraError

# name -> module
LIBRARIES: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST: Mapping[str, tuple[int, int]] = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 4)}


@dataclass(frozen=True)
class Feature:
    """Something that not every release can do."""

    what: str
    since: Mapping[str, tuple[int, int]]  # the oldest release of each library that can; not named: none can


# Read off the attributes of the bindings of TensorRT 10.3 to 11.4 (tests/runtime/tensorrt/api_surface.json). TensorRT-RTX has the
# attributes too, but answers hardware compatibility with "unsupported in TensorRT-RTX", documents that its engines do not outlive a
# release, and asks for a GPU as soon as a timing cache is touched, which there changes nothing.
FEATURES: Mapping[str, Feature] = {
    "archs": Feature("engines for GPUs that are not here (archs)", {"tensorrt-rtx": (1, 0)}),
    "version_compatible": Feature("engines that outlive a release", {"tensorrt": (8, 6)}),
    "ampere+": Feature("engines for Ampere and newer", {"tensorrt": (8, 6)}),
    "same": Feature("engines for every GPU of one compute capability", {"tensorrt": (10, 9)}),
    "timing_cache": Feature("timing caches", {"tensorrt": (8, 0)}),
}


@dataclass(frozen=True)
class Library:
    """One of the packages, imported."""

    name: str  # of LIBRARIES
    module: Any
    version: str  # e.g. "10.3.0.30"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def number(self) -> tuple[int, int]:
        """(major, minor)."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for GPUs that are not here."""
        return self.has("archs")

    def has(self, feature: str) -> bool:
        """Whether this release can do one of FEATURES."""
        since = FEATURES[feature].since.get(self.name)
        return since is not None and self.number >= since

    def need(self, feature: str) -> None:
        """Raise EngineError where this release lacks one of FEATURES; names the oldest that has it."""
        if not self.has(feature):
            which = " or ".join(
                f"{name} {major}.{minor}" for name, (major, minor) in FEATURES[feature].since.items()
            )
            raise EngineError(
                f"{self}: has not {FEATURES[feature].what}. Leave it out, or use {which} or newer."
            )

    @property
    def archs(self) -> tuple[str, ...]:
        """The GPUs that can be built for ahead of time, e.g. ("sm80", "sm86"); () where none can."""
        if not self.ahead_of_time:
            return ()
        names = self.module.ComputeCapability.__members__
        return tuple(sorted((n.lower() for n in names if n.startswith("SM")), key=lambda n: int(n[2:])))

    def read_archs(self, texts: Iterable[str]) -> tuple[str, ...]:
        """GPUs as people write them ("sm89", "8.9", "SM_89"), as this project writes them ("sm89"), each once.

        Raises:
            EngineError: this library builds only for the GPU that is here, or it does not know one of them.
        """
        return tuple(dict.fromkeys(self._read_arch(text) for text in texts))

    def _read_arch(self, text: str) -> str:
        self.need("archs")
        match = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)", text.strip().lower())
        name = f"sm{match[1]}{match[2]}" if match else ""
        if name not in self.archs:
            raise EngineError(
                f"arch {text!r}: {self} cannot build for it. Choose of {', '.join(self.archs)}."
            )
        return name


def load_library(name: str) -> Library:
    """Import one of LIBRARIES.

    Raises:
        EngineError: no such library, or one too old.
        MissingExtraError: not installed; says how to get it.
    """
    if name not in LIBRARIES:
        raise EngineError(f"{name!r}: no such TensorRT. Choose one of {', '.join(LIBRARIES)}.")
    try:
        module = import_module(LIBRARIES[name])
    except ImportError as error:
        how = (
            "pip install 'edgeclip[tensorrt-rtx]'"
            if name == "tensorrt-rtx"
            else "pip install tensorrt 'edgeclip[tensorrt]', or on a Jetson: apt-get install python3-libnvinfer"
        )
        raise MissingExtraError(f"{name} is not installed ({error}). Run: {how}") from error
    library = Library(name, module, module.__version__)
    if library.number < OLDEST[name]:
        oldest = ".".join(map(str, OLDEST[name]))
        raise EngineError(f"{name} {library.version}: too old. edgeclip needs {oldest} or newer.")
    return library
