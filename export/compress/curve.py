"""The trade-off curve: every graph that was measured, with what it costs, what it gives and what became of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgeclip.export.compress.figures import Figures
from edgeclip.export.compress.latency import Latency

Tower = Literal["image", "text", "detector", "tokens", "regions", "grounding"]
Verdict = Literal["reference", "base", "step", "fits", "refused", "chosen", "unproven"]


@dataclass(frozen=True)
class Point:
    """One graph of one tower."""

    tower: Tower
    base: str  # id of the float variant that it was made from
    method: str  # of export.precision.METHODS; "float" for the base itself
    left: tuple[str, ...]  # layers that were left in float
    size_bytes: int  # of its weights
    figures: Figures | None  # on the calibration half; None: it does not run here
    latency: Latency | None  # None: not timed
    verdict: Verdict
    reason: str = ""  # of a refusal, with the figures
    held_out: Figures | None = None  # the last word
    # largest change of a row with the batch it is in (1, 3, 8), over the median distance between samples
    batch_change: float | None = None
    routing: float | None = (
        None  # of a tower with mixtures: share of the tokens' choices of experts that are fp32's
    )

    @property
    def name(self) -> str:
        """Short, for tables and pictures, e.g. "int8, 3 left"."""
        return self.method + (f", {len(self.left)} left" if self.left else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def row(self, boxes: bool = False) -> tuple[str, ...]:
        """Cells under `columns`."""
        figures, latency = self.held_out or self.figures, self.latency
        return (
            self.base,
            self.name,
            f"{self.size_bytes / 1e6:.1f}" if self.size_bytes else "-",
            f"{latency.ms:.2f}" if latency else "-",
            str(latency) if latency else "-",
            f"{figures.distance:.4f}" if figures else "-",
            f"{figures.cosine:.5f}" if figures else "-",
            f"{figures.top1:+.1f}" if figures and figures.top1 is not None else "-",
            f"{figures.recall:+.1f}" if figures else "-",
            *(_shown(getattr(figures, name, None)) for name in BOXES if boxes),
            self.verdict,
        )


BOXES = ("box", "score", "agreement")


def columns(boxes: bool) -> tuple[str, ...]:
    """Of a table of points; `boxes`: with a detector's."""
    more = BOXES if boxes else ()
    return (
        "from",
        "graph",
        "MB",
        "ms",
        "faster",
        "rel. dist.",
        "cosine",
        "top-1",
        "recall",
        *more,
        "verdict",
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
