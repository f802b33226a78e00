"""NVIDIA GPUs through `cuda-bindings`: what is there, pinned memory, device buffers, streams, events, CUDA graphs. No PyTorch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One GPU."""

    index: int
    name: str  # e.g. "NVIDIA RTX A4000"
    capability: tuple[int, int]  # compute capability, e.g. (8, 6)
    memory: int  # bytes
    driver: str  # highest CUDA version that its driver serves, e.g. "13.0"

    @property
    def arch(self) -> str:
        """As compilers write it, e.g. "sm86"."""
        return f"sm{self.capability[0]}{self.capability[1]}"
