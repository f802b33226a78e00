"""How towers beside those of pictures and texts are proved: each against its source, by figures of its own.

A proof runs the source once, before anything is traced, and then holds every variant of the tower to what it said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Variant
from edgeclip.export.parity import Parity
from edgeclip.models.source import Source

Array = NDArray[Any]

# Kind of tower -> the module whose `open_proof(source, kind, material)` gives its Proof.
PROOFS: Mapping[str, str] = {
    "detector": "edgeclip.export.detector_parity",
    **dict.fromkeys(("tokens", "regions", "grounding"), "edgeclip.export.region_parity"),
}


@dataclass(frozen=True)
class Material:
    """What the source and its graphs are run on."""

    pictures: Sequence[Path | Array]
    golden: Sequence[Array]  # (H, W, 3) uint8 RGB each: those that travel in the bundle
    text_rows: Array | None  # (M, D) the source's unit rows of ordinary texts; None: no text tower
    tolerance: float | None  # of embeddings, in place of the precision's own
    threads: int | None  # of the engine


class Proof(Protocol):
    """What a tower's source said, and whether its graphs say the same."""

    def golden(self) -> dict[str, Array]:
        """What the golden file holds of this tower, by array name."""

    def compare(self, bundle: Bundle, variant: Variant) -> Parity:
        """Run a variant of a bundle that need not be sealed. A figure that falls short is reported, not raised."""


def open_proof(source: Source, kind: str, material: Material) -> Proof:
    """Run a source's tower. Raises CheckFailed for what is not finite or does not depend on the picture."""
    proof: Proof = import_module(PROOFS[kind]).open_proof(source, kind, material)
    return proof
