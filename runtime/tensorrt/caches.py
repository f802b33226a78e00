"""What the libraries like to keep for themselves, under this machine's seal: timings of kernels, kernels compiled on the device."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Literal

from edgeclip.errors import EngineError
from edgeclip.runtime.tensorrt.guard import make_private
from edgeclip.runtime.tensorrt.key import read_sealed, write_sealed

Kind = Literal["timing", "runtime"]  # the folders in a store
MOST = 1 << 30  # bytes

log = logging.getLogger(__name__)


def read_cache(folder: Path, kind: Kind, *facts: str) -> bytes | None:
    """A cache that was kept for exactly these facts; None: there is none, or it cannot be trusted, which is logged.

    Args:
        folder: of the store.
        facts: what it is valid for, e.g. library, version, device.
    """
    path, sealed_as = _place(folder, kind, facts)
    try:
        return read_sealed(path, sealed_as, MOST)
    except FileNotFoundError:
        return None
    except EngineError as error:
        log.warning("a cache is not used: %s", error)
        return None


def write_cache(folder: Path, kind: Kind, data: bytes, *facts: str) -> None:
    """Keep a cache; see `read_cache`. Raises EngineError or InputError where it cannot be kept."""
    path, sealed_as = _place(folder, kind, facts)
    make_private(path.parent)
    write_sealed(path, data, sealed_as)


def _place(folder: Path, kind: Kind, facts: tuple[str, ...]) -> tuple[Path, str]:
    sealed_as = json.dumps([kind, *facts])
    return folder / kind / f"{hashlib.sha256(sealed_as.encode()).hexdigest()[:16]}.cache", sealed_as
