"""The use of experts as one HTML file: nothing is fetched, no script runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from edgeclip.bench.render.experts import heat, words
from edgeclip.bench.render.experts.heat import heat_map
from edgeclip.bench.render.experts.shown import Seen, Shown, strip
from edgeclip.bench.render.experts.tint import COLOURS, colour, ink_on, plain, tinted
from edgeclip.bench.render.page import bullets, page, paragraph, section
from edgeclip.bench.render.svg import tag, text
from edgeclip.bench.render.words import percent
from edgeclip.runtime.experts import ExpertUse

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
QUALITY = 72  # of the JPEGs
STYLE = """
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(45%, 210px), 1fr)); gap: 0.75rem; margin: 0.5rem 0 1.2rem; }
.maps figure { margin: 0; }
.maps img { width: 100%; height: auto; display: block; border-radius: 4px; }
.strip { display: flex; align-items: center; gap: 0.6rem; margin: 0.3rem 0; }
.strip img { max-width: calc(100% - 3rem); height: auto; border-radius: 3px; }
.expert { flex: none; display: inline-block; min-width: 1.9em; padding: 0 0.35em; text-align: center; border-radius: 4px; font-weight: 600; border: 1px solid var(--rule); }
"""


def of_use(name: str, towers: Sequence[Shown]) -> str:
    """The whole page. `name`: of the model."""
    title = f"Experts of {name}"
    brief = "".join(paragraph(words.in_brief(shown.use)) for shown in towers)
    doubts = bullets([line for shown in towers for line in words.warnings(shown.use)], "doubts")
    parts = [tag("header", tag("h1", text(title)) + brief + doubts)]
    for shown in towers:
        parts += [_heat(shown.use), _maps(shown), _patches(shown)]
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<style>{heat.STYLE}{STYLE}</style>\n'
    return page(title, "\n".join(filter(None, parts)), head)


def _heat(use: ExpertUse) -> str:
    note = (
        "What part of a block's choices fell on each expert. The stronger the colour, the more it is used; a dashed red frame: never used. "
        f"Balance: 100 % where all are used alike. {words.LAST}"
    )
    drawn = tag("div", heat_map(use), class_="scroll", tabindex="0")
    return section(f"Use by block: {use.tower} tower", drawn, paragraph(note))


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
