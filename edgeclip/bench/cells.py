"""A matrix of runs as frozen dataclasses: engines x variants x batches. Made by matrix.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeclip.bench.report import Device, Spread
from edgeclip.bench.settings import Settings

FORMAT = "edgeclip.bench.matrix"
FORMAT_VERSION = (1, 0)


@dataclass(frozen=True)
class Cell:
    """One engine, one variant of the image tower, one batch."""

    engine: str
    variant: str
    precision: str
    batch: int
    state: Literal["done", "failed"]
    reason: str = ""  # of one that failed, on one line
    provider: str = ""  # that really ran it
    latency: Spread | None = None  # of a call
    throughput_per_s: float = 0.0  # samples
    load_ms: float = 0.0
    peak_rss_bytes: int | None = None
    size_bytes: int = 0  # of the variant's files
    relative_distance: float | None = None  # to the source, as the bundle states it
    seconds: float = 0.0  # that the cell took


@dataclass(frozen=True)
class Matrix:
    """All cells of one bundle on one device."""

    created: str  # UTC, ISO 8601
    edgeclip: str
    bundle: str
    model_id: str
    digest: str
    device: Device
    settings: Settings
    cells: tuple[Cell, ...]
