"""Level bars of segments: what a whole consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeclip.bench.render.svg import LETTER, WIDTH, drawing, tag, text
from edgeclip.bench.render.words import clean, number


def stacked(
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]],
    show: Callable[[float], str] = number,
) -> str:
    """Level bars of segments.

    Args:
        rows: name of a bar, and its segments: name, length in any unit (the longest bar fills the width), class of its colour.
    """
    most = (
        max((sum(max(0.0, length) for _, length, _ in segments) for _, segments in rows), default=0.0) or 1.0
    )
    parts, step = [tag("title", text(title))], 52
    for row, (name, segments) in enumerate(rows):
        x, y = 2.0, row * step + 18.0
        parts.append(tag("text", text(name), class_="axis", x=x, y=row * step + 12.0))
        for segment, length, css in segments:
            wide = max(0.0, length) / most * (WIDTH - 4)
            tip = tag("title", text(f"{segment}: {show(length)}"))
            parts.append(tag("rect", tip, class_=f"segment {css}", x=x, y=y, width=wide, height=26.0))
            word = clean(segment)
            if LETTER * len(word) + 8 < wide:
                parts.append(
                    tag("text", text(word), class_="inside", x=x + wide / 2, y=y + 17, text_anchor="middle")
                )
            x += wide
    return drawing("".join(parts), max(1, len(rows)) * step - 4)
