"""The use of experts as one HTML file: nothing is fetched, no script runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from edgeclip.bench.render.experts import words
from edgeclip.bench.render.experts.shown import Seen, Shown, strip
from edgeclip.bench.render.experts.tint import COLOURS, colour, ink_on, plain, tinted
from edgeclip.bench.render.page import bullets, page, paragraph, section
from edgeclip.bench.render.svg import tag, text
from edgeclip.bench.render.words import percent
from edgeclip.runtime.experts import ExpertUse

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
QUALITY = 80  # of the JPEGs
CELL, ROW, LEFT, TOP = 64, 24, 70, 40  # of the heat map, pixels
STRONGEST = 0.6  # opacity of the most used expert's cell: its number is read on it in both themes
STYLE = """<style>
svg.heat { width: auto; max-width: 100%; }
svg .cell { fill: var(--c1); stroke: var(--rule); }
svg .never { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 4 3; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 210px), 1fr)); gap: 0.75rem; margin: 0.5rem 0 1.2rem; }
.maps figure { margin: 0; }
.maps img { width: 100%; height: auto; display: block; border-radius: 4px; }
.strip { display: flex; align-items: center; gap: 0.6rem; margin: 0.3rem 0; }
.strip img { max-width: calc(100% - 3rem); height: auto; border-radius: 3px; }
.expert { flex: none; display: inline-block; min-width: 1.9em; padding: 0 0.35em; text-align: center; border-radius: 4px; font-weight: 600; }
</style>
"""


def of_use(name: str, towers: Sequence[Shown]) -> str:
    """The whole page. `name`: of the model."""
    title = f"Experts of {name}"
    brief = "".join(paragraph(words.in_brief(shown.use)) for shown in towers)
    doubts = bullets([line for shown in towers for line in words.warnings(shown.use)], "doubts")
    parts = [tag("header", tag("h1", text(title)) + brief + doubts)]
    for shown in towers:
        parts += [_heat(shown.use), _maps(shown), _patches(shown)]
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n{STYLE}'
    return page(title, "\n".join(filter(None, parts)), head)


def _heat(use: ExpertUse) -> str:
    note = (
        "What part of a block's choices fell on each expert. Darker (or brighter, on a dark page): used more; a dashed red frame: never used. "
        "Balance: 100 % where all are used alike."
    )
    width, height = LEFT + CELL * (max(use.experts) + 1) + 20, TOP + ROW * len(use.blocks) + 6
    svg = tag(
        "svg",
        _cells(use),
        class_="heat",
        viewBox=f"0 0 {width} {height}",
        style=f"width:{width}px",
        role="img",
    )
    return section(
        f"Use by block: {use.tower} tower",
        tag("div", svg, class_="scroll", tabindex="0"),
        paragraph(f"{note} {words.LAST}"),
    )


def _cells(use: ExpertUse) -> str:
    most = max(float(use.choices.max()), 1e-9)
    parts = [tag("title", text(f"Use of experts by block, {use.tower} tower"))]
    for expert in range(max(use.experts)):
        middle = LEFT + CELL * (expert + 0.5)
        parts.append(tag("text", f"expert {expert}", class_="axis", x=middle, y=18, text_anchor="middle"))
        parts.append(
            tag("rect", x=LEFT + CELL * expert + 4, y=24, width=CELL - 8, height=8, rx=2, fill=colour(expert))
        )
    parts.append(
        tag(
            "text",
            "balance",
            class_="axis",
            x=LEFT + CELL * (max(use.experts) + 0.6),
            y=18,
            text_anchor="middle",
        )
    )
    for i, block in enumerate(use.blocks):
        y = TOP + ROW * i
        parts.append(tag("text", f"block {block}", class_="tick", x=LEFT - 8, y=y + 16, text_anchor="end"))
        for expert in range(use.experts[i]):
            share, x = float(use.choices[i, expert]), LEFT + CELL * expert
            never = use.samples > 0 and share == 0
            said = (
                f"block {block}, expert {expert}: {percent(share)} of the choices, {int(use.chosen[i, expert]):,} tokens, "
                f"mean share {percent(float(use.mean_shares[i, expert]))}"
            )
            shape = {"x": x + 1, "y": y + 1, "width": CELL - 2, "height": ROW - 2}
            opacity = f"{STRONGEST * share / most:.3f}"
            parts.append(
                tag(
                    "rect",
                    tag("title", text(said)),
                    class_=f"cell{' never' if never else ''}",
                    fill_opacity=opacity,
                    **shape,
                )
            )
            parts.append(
                tag(
                    "text",
                    words.part(share),
                    x=x + CELL / 2,
                    y=y + 16,
                    text_anchor="middle",
                    pointer_events="none",
                )
            )
        balance = percent(float(use.balance[i]))
        parts.append(
            tag(
                "text",
                balance,
                class_="tick",
                x=LEFT + CELL * (max(use.experts) + 0.6),
                y=y + 16,
                text_anchor="middle",
            )
        )
    return "".join(parts)


def _maps(shown: Shown) -> str:
    if not shown.pictures:
        return ""
    rows = [_pictures_of(seen, shown.blocks) for seen in shown.pictures]
    return section("Who takes which patch", paragraph(words.OF_PICTURES), _legend(shown.use), *rows)


def _legend(use: ExpertUse) -> str:
    experts = max(use.experts)
    again = (
        f" From expert {len(COLOURS)} on the colours come again: the numbers tell."
        if experts > len(COLOURS)
        else ""
    )
    marks = " ".join(_mark(expert) for expert in range(experts))
    return tag("p", f"Experts: {marks}{again}", class_="quiet")


def _mark(expert: int) -> str:
    css = colour(expert)
    return tag("span", str(expert), class_="expert", style=f"background:{css};color:{ink_on(css)}")


def _pictures_of(seen: Seen, blocks: Sequence[int]) -> str:
    assert seen.routing.grid is not None
    figures = [
        _figure(plain(seen.pixels, seen.routing.grid), seen.name, f"{seen.name}, as the tower sees it")
    ]
    for block in blocks:
        winners = seen.routing.map_of(block)
        counts = np.bincount(winners.ravel())
        most = ", ".join(
            f"{expert}: {counts[expert]}" for expert in np.argsort(-counts, kind="stable") if counts[expert]
        )
        said = f"{seen.name}: patches by expert in block {block}: {most}"
        figures.append(_figure(tinted(seen.pixels, winners), f"block {block}", said))
    return tag("div", "".join(figures), class_="maps")


def _figure(image: Image.Image, caption: str, said: str) -> str:
    return tag("figure", _image(image, said) + tag("figcaption", text(caption)))


def _patches(shown: Shown) -> str:
    if not shown.patches:
        return ""
    alike = all(share >= 1 for tiles in shown.patches.values() for _, share, _ in tiles)
    note = "The framed patch, with its neighbours; of each picture one at most, the largest share first." + (
        " All shares are 1, so these are drawn from the patches that each expert took." if alike else ""
    )
    parts = [paragraph(note)]
    for block in shown.blocks:
        experts = shown.use.experts[shown.use.blocks.index(block)]
        parts.append(tag("h3", f"Block {block}"))
        for expert in range(experts):
            tiles = shown.patches.get((block, expert), ())
            if tiles:
                said = "; ".join(f"{name}, share {percent(share)}" for name, share, _ in tiles)
                drawn = _image(strip([pixels for *_, pixels in tiles]), said)
            else:
                drawn = tag("span", "took no patch", class_="quiet")
            parts.append(tag("div", _mark(expert) + drawn, class_="strip"))
    return section("What each expert took most surely", *parts)


def _image(image: Image.Image, said: str) -> str:
    buffer = io.BytesIO()
    image.save(
        buffer, "JPEG", quality=QUALITY, subsampling=0
    )  # whole colour: its edges are what is looked at
    data = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img src="{data}" alt="{text(said)}" title="{text(said)}" width="{image.width}" height="{image.height}">'
