"""A contact sheet: the answer to a search as one HTML file, with its pictures inside, without a script, fetching nothing."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError
from edgeclip.runtime.images.decode import Picture, decode
from edgeclip.runtime.index.places import is_text, read_picture
from edgeclip.runtime.index.queries import Query
from edgeclip.runtime.index.types import Hit, Item

SIDE = 256  # longest of a thumbnail, pixels; 1,000 of them make a page of some 12 MB
QUALITY = 80  # of its JPEG
WHITE = (255, 255, 255)  # behind transparent pictures, in both themes: most are drawn for it
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # whatever a name holds, nothing runs and nothing is fetched


@dataclass(frozen=True)
class Part:
    """A part of the question as it is shown."""

    label: str
    weight: float  # below 0: not wanted
    picture: Picture | None = None


@dataclass(frozen=True)
class Asked:
    """What was asked, and of what."""

    parts: Sequence[Part]
    source: str  # the index or folder
    model: str
    count: int  # items that were searched
    where: str | None = None
    threshold: float | None = None


def words_of(parts: Sequence[Part]) -> str:
    """The question in one line."""
    first = "" if parts and parts[0].weight >= 0 else "− "
    signs = [first, *("+ " if part.weight >= 0 else "− " for part in parts[1:])]
    return " ".join(f"{sign}{part.label}" for sign, part in zip(signs, parts, strict=False))


def parts_of(query: Query, likes: Sequence[Item] = ()) -> list[Part]:
    """The parts of a question; `likes`: the items whose vectors stand in it, in that order."""
    named, found = iter(likes), []
    for kind, term, weight in query.parts():
        if kind == "text":
            found.append(Part(term, weight))
        elif isinstance(term, (str, Path)):
            found.append(Part(Path(term).name, weight, term))
        elif getattr(term, "ndim", 0) == 1:
            item = next(named, None)
            found.append(
                Part("a vector", weight) if item is None else Part(item.key, weight, _picture_of(item))
            )
        else:
            found.append(Part("a picture", weight, term))
    return found


def _picture_of(item: Item) -> Picture | None:
    try:
        return read_picture(item)
    except InputError:  # it is gone: its vector still asks, and `_part` would say the same of a file
        return None


def contact_sheet(hits: Sequence[Hit], asked: Asked) -> str:
    """The whole page, in the order of the hits. A picture that cannot be shown leaves its place to the reason."""
    css = Path(__file__).with_name("sheet.css").read_text(encoding="utf-8")
    best = max((hit.score for hit in hits), default=0.0)
    tiles = "\n".join(_tile(rank, hit, best) for rank, hit in enumerate(hits, 1))
    body = [
        _tag("header", _tag("h1", _text(words_of(asked.parts))) + _parts(asked.parts) + _tag("p", _text(_facts(asked, len(hits))), class_="quiet")),
        _tag("main", _tag("ol", tiles, class_="sheet") if hits else _tag("p", "Nothing fits.")),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(words_of(asked.parts))}</title>\n<style>\n{css}</style>\n</head>\n<body>\n{''.join(body)}\n</body>\n</html>\n"
    )


def _facts(asked: Asked, shown: int) -> str:
    parts = [f"{shown:,} of {asked.count:,} in {asked.source}", f"by {asked.model}"]
    if asked.where:
        parts.append(f"where {asked.where}")
    if asked.threshold is not None:
        parts.append(f"score of {asked.threshold:g} or more")
    return " · ".join(parts)


def _parts(parts: Sequence[Part]) -> str:
    """Shown where they say more than the heading: pictures, weights."""
    if len(parts) == 1 and parts[0].picture is None:
        return ""
    return _tag("ul", "".join(map(_part, parts)), class_="asked")


def _part(part: Part) -> str:
    picture = ""
    if part.picture is not None:
        try:
            data, *_ = _thumbnail(part.picture)
            picture = _tag("img", None, src=data, alt=part.label)
        except InputError:  # of an item that is stored: its vector still asks
            picture = _tag("span", "(its picture is gone)", class_="quiet")
    wanted = f"not {part.label}" if part.weight < 0 else part.label
    said = _tag("span", f"{_text(wanted)} {_tag('span', f'× {abs(part.weight):.2g}', class_='quiet')}")
    return _tag("li", picture + said, **({"class_": "not"} if part.weight < 0 else {}))


def _tile(rank: int, hit: Hit, best: float) -> str:
    share = 100 * min(max(hit.score / best, 0.0), 1.0) if best > 0 else 0.0
    bar = _tag("span", _tag("span", "", style=f"width:{share:.0f}%"), class_="track", aria_hidden="true")
    score = _tag("p", _tag("b", str(rank)) + bar + _tag("span", f"{hit.score:.3f}"), class_="score")
    caption = hit.record.get("caption")
    told = (
        _tag("p", _text(caption), class_="told")
        if isinstance(caption, str) and caption and not is_text(hit)
        else ""
    )
    others = [(name, value) for name, value in hit.record.items() if name != "caption"]
    rows = "".join(_tag("dt", _text(name)) + _tag("dd", _text(_said(value))) for name, value in others)
    record = _tag("details", _tag("summary", "record") + _tag("dl", rows)) if rows else ""
    key = _tag("p", _text(hit.key), class_="key")
    return _tag("li", _tag("figure", _frame(hit) + _tag("figcaption", score + key + told + record)))


def _frame(hit: Hit) -> str:
    """The picture with its box, which leads to the file; or what stands in its place."""
    try:
        picture = read_picture(hit)
        if picture is None:
            said = _tag("p", _text(hit.record.get("caption") or hit.key), class_="said")
            return _tag("div", said, class_="frame")
        data, width, height = _thumbnail(picture)
    except InputError as error:
        return _tag("div", _tag("p", _text(error)), class_="frame")
    image = _tag("img", None, src=data, alt=_described(hit), width=f"{width}", height=f"{height}")
    turned = "fit wide" if width >= height else "fit high"
    shown = image + _box(hit, width, height)
    fit = _tag("span", shown, class_=turned, style=f"aspect-ratio:{width}/{height}")
    if isinstance(picture, bytes):
        return _tag("div", fit, class_="frame")
    return _tag("a", fit, class_="frame", href=picture.absolute().as_uri())


def _box(hit: Hit, width: int, height: int) -> str:
    box = hit.record.get("box")
    if not (isinstance(box, (list, tuple)) and len(box) == 4 and all(_is_finite(x) for x in box)):
        return ""
    left, top, right, bottom = map(float, box)
    shape = {
        "x": f"{left:g}",
        "y": f"{top:g}",
        "width": f"{max(right - left, 0):g}",
        "height": f"{max(bottom - top, 0):g}",
    }
    drawn = _tag("rect", "", **shape) * 2  # a light line under a dark one is seen on any picture
    return _tag("svg", drawn, viewBox=f"0 0 {width} {height}", preserveAspectRatio="none", aria_hidden="true")


def _thumbnail(picture: Picture) -> tuple[str, int, int]:
    """A data: URI, and the width and height of the whole picture. Raises InputError."""

    def wanted(width: int, height: int) -> tuple[int, int]:
        scale = min(SIDE / max(width, height), 1)
        return math.ceil(width * scale), math.ceil(height * scale)

    found = decode(picture, at_least=wanted, background=WHITE)
    image = found.image.copy()
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", *found.size


def _described(hit: Hit) -> str:
    caption = hit.record.get("caption")
    what = (
        caption if isinstance(caption, str) and caption else Path(str(hit.record.get("path", hit.key))).name
    )
    return f"A region of {what}" if "box" in hit.record else what


def _said(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _text(content: Any) -> str:
    """A text from outside, for the inside of an element or an attribute."""
    return escape("".join(_visible(str(content))))


def _visible(content: str) -> Iterator[str]:
    for letter in " ".join(content.split()):
        yield (
            letter if letter.isprintable() else "\ufffd"
        )  # also turns of the reading direction, and lone surrogates


def _tag(name: str, content: str | None = "", **attributes: str) -> str:
    """An element. `content` is markup, None: an element that has none; `class_` and `aria_hidden` become class and aria-hidden."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{shown}>" if content is None else f"<{name}{shown}>{content}</{name}>"
