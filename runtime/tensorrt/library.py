"""TensorRT's two Python packages behind one face. They share their classes; what differs is asked of `Library`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from edgeclip.errors import EngineError, MissingExtraError

# name -> module
LIBRARIES: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST: Mapping[str, tuple[int, int]] = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 4)}


@dataclass(frozen=True)
class Library:
    """One of the packages, imported."""

    name: str  # of LIBRARIES
    module: Any
    version: str  # e.g. "10.3.0.30"

    @property
    def number(self) -> tuple[int, int]:
        """(major, minor)."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for GPUs that are not here."""
        return self.name == "tensorrt-rtx"


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
