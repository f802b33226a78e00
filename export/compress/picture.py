"""The trade-off curve as a picture: an SVG file, drawn without any library. One panel a tower; left and low is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from edgeclip.export.compress.budget import KINDS, Budget, of_tower
from edgeclip.export.compress.curve import Point

WIDTH, HEIGHT = 720, 360  # of a panel, pixels
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 40, 48  # of its margins
FONT = 11
# figure of a budget -> (what is drawn upwards, from a value to the loss)
LOSSES: Mapping[str, tuple[str, Callable[[float], float]]] = {
    "distance": ("relative distance to fp32", lambda value: value),
    "cosine": ("1 - mean cosine to fp32", lambda value: 1 - value),
    "top1": ("points of top-1 lost", lambda value: -value),
    "recall": ("points of recall lost", lambda value: -value),
    "box": ("mean change of a corner, share of the side", lambda value: value),
    "score": ("mean change of a score", lambda value: value),
    "agreement": ("1 - F1 of the detections with fp32's", lambda value: 1 - value),
}
TITLES = {"detector": "detector"}
COLOURS = {
    "reference": "#444444", "base": "#444444", "step": "#8fa8c8", "fits": "#2b6cb0", "refused": "#c05621",
    "chosen": "#2f855a", "unproven": "#805ad5",
}  # fmt: skip


def draw(points: Sequence[Point], budgets: Sequence[Budget]) -> str:
    """The SVG file's text: points that were measured, a budget as a line, the chosen one green.

    A panel for each tower and its first budget, of a detector also for each figure of boxes that is bounded.
    """
    towers = list(dict.fromkeys(point.tower for point in points if point.figures))
    wanted = [
        (tower, budget)
        for tower in towers
        for i, budget in enumerate(of_tower(budgets, tower))
        if i == 0 or KINDS[budget.kind].boxes
    ]
    panels = []
    for i, (tower, budget) in enumerate(wanted):
        own = [point for point in points if point.tower == tower and point.figures]
        panels.append(f'<g transform="translate(0 {i * HEIGHT})">{_panel(tower, own, budget)}</g>')
    height = HEIGHT * max(1, len(wanted))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="{FONT}"><rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    )


@dataclass(frozen=True)
class Scale:
    """From values to pixels, with round ticks that begin at 0."""

    most: float
    first: float  # pixel of 0
    last: float  # pixel of the last tick

    @property
    def ticks(self) -> list[float]:
        """Values to write at the axis, the first 0."""
        step = 10 ** math.floor(math.log10(self.most / 4))
        step *= next(k for k in (1, 2, 5, 10) if self.most / (k * step) <= 6)
        return [i * step for i in range(math.ceil(self.most / step) + 1)]

    def __call__(self, value: float) -> float:
        return self.first + (self.last - self.first) * value / self.ticks[-1]


@dataclass
class Labels:
    """Places for texts that do not cover each other."""

    taken: list[tuple[float, float, float]] = field(default_factory=list)  # x, y, width

    def place(self, x: float, y: float, text: str) -> str:
        """An SVG text near the point, beside or over it."""
        width = 0.56 * FONT * len(text)
        spots = [
            (8, 4),
            (-8 - width, 4),
            (8, -9),
            (-8 - width, -9),
            (8, 17),
            (-8 - width, 17),
            (8, -22),
            (8, 30),
        ]
        free = (spot for spot in spots if self._is_free(x + spot[0], y + spot[1], width))
        dx, dy = next(free, spots[0])
        self.taken.append((x + dx, y + dy, width))
        return f'<text x="{x + dx:.1f}" y="{y + dy:.1f}">{escape(text)}</text>'

    def _is_free(self, x: float, y: float, width: float) -> bool:
        inside = x > LEFT and x + width < WIDTH - RIGHT / 2 and TOP - FONT < y < HEIGHT - BOTTOM
        return inside and all(x + width < a or a + w < x or abs(y - b) > FONT for a, b, w in self.taken)


def _panel(tower: str, points: Sequence[Point], budget: Budget) -> str:
    label, loss = LOSSES[budget.kind]
    timed = all(point.latency for point in points if point.verdict != "reference")
    reference = next((p.latency.reference_ms for p in points if p.latency), 0.0)

    def across(point: Point) -> float:
        if not timed:
            return point.size_bytes / 1e6
        # medians of turns beside this graph; the machine's mood of the hour cancels in the ratio
        return reference / point.latency.ratio if point.latency else reference

    def up(point: Point) -> float:
        figures = point.held_out or point.figures
        value = getattr(figures, budget.kind)
        return float(loss(0.0 if value is None else value))

    bound = float(loss(budget.bound))
    x = Scale(max(map(across, points)) or 1.0, LEFT, WIDTH - RIGHT)
    y = Scale(max([bound, *map(up, points)]) or 1.0, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{TITLES.get(tower, f"{tower} tower")}</text>',
        *axes(x, y),
    ]
    parts.append(text_at(WIDTH / 2, HEIGHT - 10, "ms, batch 1" if timed else "MB of weights", "middle"))
    middle = HEIGHT / 2
    parts.append(
        f'<text transform="rotate(-90 16 {middle})" x="16" y="{middle}" text-anchor="middle">{label}</text>'
    )
    parts.append(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(bound):.1f}" y2="{y(bound):.1f}" stroke="#c53030" '
        f'stroke-dasharray="5 4"/>{text_at(WIDTH - RIGHT, y(bound) - 4, f"budget {budget}", "end")}'
    )
    labels = Labels([(WIDTH - RIGHT - 100.0, y(bound) - 4, 100.0)])
    labels.taken += [
        (x(across(point)) - 5, y(up(point)) + 4, 10.0) for point in points
    ]  # nothing is written on a dot
    for point in sorted(points, key=lambda p: p.verdict != "chosen"):  # its label gets the best place
        px, py = x(across(point)), y(up(point))
        name = point.base if point.method == "float" else point.name
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{6 if point.verdict == "chosen" else 4}" '
            f'fill="{COLOURS[point.verdict]}"><title>{escape(f"{point.base}: {point.name}: {point.verdict}")}</title></circle>'
        )
        parts.append(labels.place(px, py, f"{name} (chosen)" if point.verdict == "chosen" else name))
    return "".join(parts)


def axes(x: Scale, y: Scale) -> list[str]:
    """Lines and figures of both axes."""
    parts = []
    for tick in x.ticks:
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eeeeee"/>'
        )
        parts.append(text_at(x(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "middle"))
    for tick in y.ticks:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#eeeeee"/>'
        )
        parts.append(text_at(LEFT - 6, y(tick) + 4, f"{tick:.3g}", "end"))
    return parts


def text_at(x: float, y: float, text: str, anchor: str) -> str:
    """An SVG text. `anchor`: "start", "middle" or "end"."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#444444">{escape(text)}</text>'
