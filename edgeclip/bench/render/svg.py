"""Plots as SVG, drawn without a library: an axis from values to pixels, and a plot that collects marks.

Colours are classes of page.css, so that one drawing serves a light and a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from edgeclip.bench.render.words import clean, number

WIDTH, HEIGHT, FONT = 440, 270, 12  # of a plot, pixels of its own; a page shows it at 300 to 560 wide
TOP, BOTTOM, RIGHT = 26, 42, 14  # of its margins
LETTER = 0.58 * FONT  # mean width of a letter

Point = tuple[float, float]


def text(content: str) -> str:
    """A text from outside, for the inside of an element or an attribute."""
    return escape(clean(content))


def tag(name: str, content: str = "", **attributes: str | float) -> str:
    """An element. `content` is markup; `class_` and `text_anchor` become class and text-anchor."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_shown(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{shown}>{content}</{name}>"


def _shown(value: str | float) -> str:
    return text(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values from `low` to `high`, at most `most` of them, 1, 2 or 5 times a power of ten apart."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-12) / most))
    step *= next(k for k in (1, 2, 5, 10, 20) if (high - low) / (k * step) <= most)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Powers of ten from `low` to `high`; where few, with 2 and 5 times them, and where many, only some."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors, every in (
        ((1, 2, 3, 5, 7), 1),
        ((1, 2, 5), 1),
        ((1, 3), 1),
        ((1,), 1),
        ((1,), 2),
        ((1,), 4),
        ((1,), 8),
    ):
        found = [k * 10.0**p for p in powers for k in factors if p % every == 0]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(found) <= most:
            break
    if len(found) > 2:
        return found
    return [value for value in ticks(low, high, 5) if value > 0]  # less than a factor of some three


@dataclass(frozen=True)
class Axis:
    """From values to a line of pixels."""

    label: str
    low: float
    high: float
    log: bool = False
    at: tuple[float, ...] = ()  # its ticks, where they are not to be found
    show: Callable[[float], str] = number
    first: float = 0.0  # pixels of `low` and `high`
    last: float = 1.0

    @property
    def ticks(self) -> list[float]:
        """Values that are written beside the axis."""
        if self.at:
            return list(self.at)
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)

    @property
    def texts(self) -> list[str]:
        """What is written beside the ticks: as many digits as tell them apart."""
        found = [self.show(value) for value in self.ticks]
        for digits in range(1, 7):
            if len(set(found)) == len(found) or self.show is not number:  # names may be alike
                break
            found = [f"{value:.{digits}f}" for value in self.ticks]
        return found

    def __call__(self, value: float) -> float:
        """Pixels; a value outside lies on the edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)


def axis(
    label: str, values: Sequence[float], *, zero: bool = False, log: bool = False, room: float = 0.06
) -> Axis:
    """An axis that holds all `values`, with some room; `zero`: from 0. Never of no length."""
    if log:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        grow = max((high / low) ** room, 1.15)
        return Axis(label, low / grow, high * grow, log=True)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if zero:
        low = min(low, 0.0)
    spare = max((high - low) * room, 0.0 if high > low else abs(high) * 0.05, 1e-9)
    return Axis(label, low if zero else low - spare, high + spare)


@dataclass
class Plot:
    """One plot: axes, then marks in the order in which they are added."""

    title: str  # for a screen reader; the page has a caption of its own
    x: Axis
    y: Axis
    height: int = HEIGHT
    parts: list[str] = field(default_factory=list)
    wanted: list[tuple[float, float, str, float]] = field(
        default_factory=list
    )  # labels, placed last: x, y, text, first dy
    taken: list[tuple[float, float, float]] = field(
        default_factory=list
    )  # x, y, width of dots and of labels placed

    def __post_init__(self) -> None:
        widest = max(map(len, self.y.texts))
        left = max(34.0, 24 + LETTER * widest)
        self.x = _placed(self.x, left, WIDTH - RIGHT)
        self.y = _placed(self.y, self.height - BOTTOM, TOP)

    def line(self, points: Sequence[Point], css: str) -> None:
        """Joined points."""
        self.parts.append(tag("polyline", class_=f"line {css}", points=self._points(points)))

    def bars(
        self, edges: Sequence[float], heights: Sequence[float], css: str, title: Callable[[int], str]
    ) -> None:
        """Bar i stands between edges i and i + 1."""
        for i, height in enumerate(heights):
            if height:
                left, right, top = self.x(edges[i]), self.x(edges[i + 1]), self.y(height)
                shape = {
                    "x": left,
                    "y": top,
                    "width": max(right - left - 0.6, 0.6),
                    "height": self.y.first - top,
                }
                self.parts.append(tag("rect", tag("title", text(title(i))), class_=f"bar {css}", **shape))

    def cloud(self, points: Sequence[Point], css: str) -> None:
        """Many small points, as one path."""
        shape = "".join(f"M{self.x(x):.1f} {self.y(y):.1f}h0" for x, y in points)
        if shape:
            self.parts.append(tag("path", class_=f"cloud {css}", d=shape))

    def dot(self, x: float, y: float, css: str, title: str, label: str = "", below: bool = False) -> None:
        """One point with a tooltip, and a label that covers no other."""
        shape = {"cx": self.x(x), "cy": self.y(y), "r": 4}
        self.parts.append(tag("circle", tag("title", text(title)), class_=f"dot {css}", **shape))
        self.taken.append((shape["cx"] - 3.5, shape["cy"] + 4, 7))
        self.label(self.x(x), self.y(y), label, 17 if below else 4)

    def whisker(self, y: float, low: float, high: float, css: str) -> None:
        """A level interval."""
        self.parts.append(
            tag("line", class_=f"line {css}", x1=self.x(low), x2=self.x(high), y1=self.y(y), y2=self.y(y))
        )

    def rule(self, x: float, label: str, css: str = "rule") -> None:
        """An upright line at a value, its label on top; beyond the axis an arrow."""
        at, beyond = self.x(x), x > self.x.high
        self.parts.append(tag("line", class_=css, x1=at, x2=at, y1=self.y.last, y2=self.y.first))
        self.label(at, self.y.last + 8, f"{label} →" if beyond else label)

    def level(self, y: float, label: str, css: str = "rule") -> None:
        """A level line at a value."""
        at = self.y(y)
        self.parts.append(tag("line", class_=css, x1=self.x.first, x2=self.x.last, y1=at, y2=at))
        if label:
            self.label(self.x.last - LETTER * len(label) - 8, at - 10, label)

    def label(self, x: float, y: float, content: str, down: float = 4) -> None:
        """A text near a point of pixels."""
        self.wanted.append((x, y, content, down))

    def _label(self, x: float, y: float, content: str, down: float) -> str:
        """At the first place of some where it covers no other text and no dot, and stays inside."""
        content = clean(content)
        content = content if len(content) <= 36 else content[:35] + "…"
        width = LETTER * len(content)
        places = [(dx, dy) for dy in (down, 4, -9, 17, -22, 30, -35, 43, 56, 69) for dx in (8, -8 - width)]
        dx, dy = next(
            (p for p in places if self._is_free(x + p[0], y + p[1], width)),
            (8 if x + 8 + width < WIDTH else -8 - width, 4),
        )
        left = min(max(x + dx, 2.0), max(WIDTH - width - 2, 2.0))
        self.taken.append((left, y + dy, width))
        return tag("text", text(content), class_="label", x=left, y=y + dy)

    def _is_free(self, x: float, y: float, width: float) -> bool:
        inside = x >= self.x.first + 2 and x + width <= WIDTH - 2 and self.y.last + 2 <= y <= self.y.first - 3
        return inside and all(
            x + width + 4 < a or a + w + 4 < x or abs(y - b) > FONT for a, b, w in self.taken
        )

    def _points(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)

    def svg(self) -> str:
        """The element."""
        labels = [self._label(*wanted) for wanted in self.wanted if wanted[2]]
        body = "".join((tag("title", text(self.title)), *self._axes(), *self.parts, *labels))
        return drawing(body, self.height)

    def _axes(self) -> list[str]:
        parts, end = [], -math.inf
        for value, shown in zip(self.x.ticks, self.x.texts, strict=True):
            at = self.x(value)
            half = LETTER * len(shown) / 2
            parts.append(tag("line", class_="grid", x1=at, x2=at, y1=self.y.first, y2=self.y.last))
            if (
                at - half > end + 6 and at + half <= WIDTH
            ):  # a number that would touch the one before is left out
                parts.append(
                    tag("text", text(shown), class_="tick", x=at, y=self.y.first + 16, text_anchor="middle")
                )
                end = at + half
        for value, shown in zip(self.y.ticks, self.y.texts, strict=True):
            at = self.y(value)
            parts.append(tag("line", class_="grid", x1=self.x.first, x2=self.x.last, y1=at, y2=at))
            parts.append(
                tag(
                    "text",
                    text(shown),
                    class_="tick",
                    x=self.x.first - 6,
                    y=at + 4,
                    text_anchor="end",
                )
            )
        middle = (self.x.first + self.x.last) / 2
        parts.append(
            tag("text", text(self.x.label), class_="axis", x=middle, y=self.height - 8, text_anchor="middle")
        )
        parts.append(tag("text", text(self.y.label), class_="axis", x=4, y=11))
        parts.append(
            tag("line", class_="base", x1=self.x.first, x2=self.x.last, y1=self.y.first, y2=self.y.first)
        )
        return parts


def _placed(found: Axis, first: float, last: float) -> Axis:
    return Axis(found.label, found.low, found.high, found.log, found.at, found.show, first, last)


def drawing(body: str, height: float, width: float = WIDTH) -> str:
    """An SVG element as wide as its place."""
    return tag("svg", body, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img")
