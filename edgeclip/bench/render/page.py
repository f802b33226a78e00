"""The parts that every page is made of: one file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeclip.bench.render.grid import Grid
from edgeclip.bench.render.svg import tag, text


def page(title: str, body: str, head: str = "") -> str:
    """A whole HTML file. `head`: markup that its head has besides."""
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{css}</style>\n{head}</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what is under it; empty parts are left out."""
    return tag("section", "\n".join((tag("h2", text(title)), *filter(None, parts)))) + "\n"


def paragraph(content: str, class_: str = "quiet") -> str:
    """A text from outside as a paragraph; none for an empty one."""
    return tag("p", text(content), class_=class_) if content else ""


def bullets(texts: Iterable[str], class_: str = "notes") -> str:
    """A list of texts; none for no texts."""
    items = "".join(tag("li", text(item)) for item in texts)
    return tag("ul", items, class_=class_) if items else ""


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names with what is said of them."""
    return tag("dl", "".join(tag("dt", text(name)) + tag("dd", text(said)) for name, said in pairs))


def table(grid: Grid | None, colours: Sequence[str] = ()) -> str:
    """A table that scrolls in itself where the page is narrow; `colours`: a swatch before each of the first rows."""
    if grid is None:
        return ""
    kinds = ["words" if grid.is_words(i) else "figure" for i in range(len(grid.head))]
    head = "".join(
        tag("th", text(name), scope="col", class_=kind) for name, kind in zip(grid.head, kinds, strict=True)
    )
    rows = []
    for i, row in enumerate(grid.rows):
        mark = swatch(colours[i]) if i < len(colours) else ""
        cells = [tag("th", mark + text(row[0]), scope="row")]
        cells += [tag("td", text(cell), class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)]
        rows.append(tag("tr", "".join(cells)))
    body = tag("thead", tag("tr", head)) + tag("tbody", "\n".join(rows))
    # a part that scrolls can be reached with the keyboard
    return tag("div", tag("table", body), class_="scroll", tabindex="0") + bullets(grid.notes)


def figure(title: str, svg: str, note: str = "", key: str = "") -> str:
    """A plot with its legend (`key`) and caption; none for no plot."""
    return (
        tag("figure", svg + key + tag("figcaption", f"{tag('b', text(title))} {text(note)}")) if svg else ""
    )


def legend(colours: Iterable[tuple[str, str]]) -> str:
    """Names with the colour of each."""
    items = (tag("span", swatch(css) + text(name), class_="entry") for name, css in colours)
    return tag("p", " ".join(items), class_="quiet")


def swatch(css: str) -> str:
    """A small square of a colour."""
    return tag("span", class_=f"swatch {css}")


def plots(*figures: str) -> str:
    """Figures side by side where there is room."""
    body = "".join(figures)
    return tag("div", body, class_="plots") if body else ""


def card(name: str, figure_text: str, *notes: str) -> str:
    """One headline figure."""
    body = tag("p", text(name), class_="quiet") + tag("b", text(figure_text))
    return tag("div", body + "".join(paragraph(note) for note in notes), class_="card")
