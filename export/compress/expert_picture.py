"""The curve of fewer experts as a picture: an SVG file with a panel for each tower. Left and low is better."""

from __future__ import annotations

from collections.abc import Sequence

from edgeclip.export.compress.expert_curve import ExpertPoint
from edgeclip.export.compress.picture import (
    BOTTOM,
    FONT,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Labels,
    Scale,
    axes,
    text_at,
)
from edgeclip.models.expert_use import Tower

COLOURS = {"whole": "#444444", "dropped": "#c05621", "merged": "#2b6cb0"}


def draw_experts(points: Sequence[ExpertPoint]) -> str:
    """The SVG file's text: relative distance to the whole model over megabytes of weights, a line for each way."""
    towers = list(points[0].fidelity)
    panels = [
        f'<g transform="translate(0 {i * HEIGHT})">{_panel(tower, points)}</g>'
        for i, tower in enumerate(towers)
    ]
    height = HEIGHT * len(towers)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="{FONT}"><rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    )


def _panel(tower: Tower, points: Sequence[ExpertPoint]) -> str:
    x = Scale(max(point.sizes.fp32_bytes for point in points) / 1e6, LEFT, WIDTH - RIGHT)
    y = Scale(max(point.fidelity[tower].relative_distance for point in points) or 1.0, HEIGHT - BOTTOM, TOP)

    def at(point: ExpertPoint) -> tuple[float, float]:
        return x(point.sizes.fp32_bytes / 1e6), y(point.fidelity[tower].relative_distance)

    parts = [
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{tower} tower, experts of a block</text>',
        *axes(x, y),
        text_at(WIDTH / 2, HEIGHT - 10, "MB of weights in fp32, both towers", "middle"),
        f'<text transform="rotate(-90 16 {HEIGHT / 2})" x="16" y="{HEIGHT / 2}" text-anchor="middle">'
        "relative distance to the whole model</text>",
    ]
    for way in ("dropped", "merged"):
        line = " ".join("{:.1f},{:.1f}".format(*at(p)) for p in points if p.way in (way, "whole"))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[way]}"/>')
    labels = Labels()
    labels.taken += [(at(point)[0] - 5, at(point)[1] + 4, 10.0) for point in points]
    for point in points:
        px, py = at(point)
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{COLOURS[point.way]}"/>')
        parts.append(labels.place(px, py, f"{point.keep} {point.way}"))
    return "".join(parts)
