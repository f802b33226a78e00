"""The use of experts by block as a heat map: an SVG whose colours are the page's."""

from __future__ import annotations

from edgeclip.bench.render.experts.tint import colour
from edgeclip.bench.render.experts.words import part
from edgeclip.bench.render.svg import tag, text
from edgeclip.bench.render.words import percent
from edgeclip.runtime.experts import ExpertUse

CELL, ROW, LEFT, TOP = 64, 24, 70, 40  # pixels
STRONGEST = 0.6  # opacity of the most used expert's cell: its number is read on it in both themes
STYLE = """
svg.heat { width: auto; max-width: 100%; }
svg .cell { fill: var(--c1); stroke: var(--rule); }
svg .never { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 4 3; }
"""


def heat_map(use: ExpertUse) -> str:
    """Rows are blocks, columns experts, the last column says how alike they are used."""
    experts = max(use.experts)
    width, height = LEFT + CELL * (experts + 1) + 20, TOP + ROW * len(use.blocks) + 6
    parts = [tag("title", text(f"Use of experts by block, {use.tower} tower"))]
    for expert in range(experts):
        shape = {"x": _left(expert) + 4, "y": 24, "width": CELL - 8, "height": 8, "rx": 2}
        parts.append(_word(f"expert {expert}", _left(expert) + CELL / 2, 18, "axis"))
        parts.append(tag("rect", "", fill=colour(expert), stroke="#808080", **shape))
    parts.append(_word("balance", _left(experts + 0.6), 18, "axis"))
    for i, block in enumerate(use.blocks):
        y = TOP + ROW * i
        parts.append(_word(f"block {block}", LEFT - 8, y + 16, "tick", "end"))
        parts += [_cell(use, i, expert, y) for expert in range(use.experts[i])]
        parts.append(_word(percent(float(use.balance[i])), _left(experts + 0.6), y + 16, "tick"))
    box, style = f"0 0 {width} {height}", f"width:{width}px"
    return tag("svg", "".join(parts), class_="heat", viewBox=box, style=style, role="img")


def _left(expert: float) -> float:
    return LEFT + CELL * expert


def _word(content: str, x: float, y: float, css: str, anchor: str = "middle") -> str:
    return tag("text", text(content), class_=css, x=x, y=y, text_anchor=anchor, pointer_events="none")


def _cell(use: ExpertUse, i: int, expert: int, y: float) -> str:
    """A rectangle with its figure; more is told when the mouse rests on it."""
    share, x = float(use.choices[i, expert]), _left(expert)
    said = (
        f"block {use.blocks[i]}, expert {expert}: {percent(share)} of the choices, {int(use.chosen[i, expert]):,} tokens, "
        f"mean share {percent(float(use.mean_shares[i, expert]))}"
    )
    css = "cell never" if use.samples and share == 0 else "cell"
    opacity = f"{STRONGEST * share / max(float(use.choices.max()), 1e-9):.3f}"
    shape = {"x": x + 1, "y": y + 1, "width": CELL - 2, "height": ROW - 2}
    drawn = tag("rect", tag("title", text(said)), class_=css, fill_opacity=opacity, **shape)
    return drawn + _word(part(share), x + CELL / 2, y + 16, "figure")
