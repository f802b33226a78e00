"""The contact sheet: what stands in it, read back by Python's own HTML parser; and that nothing from outside gets out of its place."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from PIL import Image

from edgeclip.runtime.index import sheet
from edgeclip.runtime.index.queries import Query
from edgeclip.runtime.index.sheet import Asked, Part, contact_sheet, parts_of, words_of
from edgeclip.runtime.index.types import Hit, Item
from tests.mutants import broken
from tests.runtime.toy import picture

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>.png"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Every element with its attributes, and all text; refuses a page whose elements do not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", list[str]()
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += f"{data}\n"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def asked(*parts: Part, **facts: object) -> Asked:
    return Asked(parts or (Part("a cat", 1.0),), "pets.index", "toy (model 111111111111...)", 1234, **facts)  # type: ignore[arg-type]


def saved(path: Path, width: int = 48, height: int = 40) -> str:
    Image.fromarray(picture(1, width, height)).save(path)
    return str(path)


def thumbnail(page: Page, i: int = 0) -> Image.Image:
    kind, data = (page.all("img")[i]["src"] or "").split(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_hits_in_their_order(tmp_path: Path) -> None:
    wide, name = saved(tmp_path / "wide.png", 640, 320), tmp_path / "a b#ü.png"
    hits = [
        Hit(wide, 0.8, 4, {"path": wide, "caption": "a wide one", "year": 2020}),
        Hit(f"{saved(name)}#1,2,3,4", 0.2, 9, {"path": str(name), "box": [10, 20, 30, 35.5]}),
    ]
    page = Page(contact_sheet(hits, asked(where="year > 3", threshold=0.1)))
    assert thumbnail(page).size == (256, 128)
    small = [np.asarray(each.resize((16, 8)), float) for each in (thumbnail(page), Image.open(wide))]
    assert np.abs(small[0] - small[1]).mean() < 2  # JPEG's own loss; upside down it is 20
    assert [image["alt"] for image in page.all("img")] == ["a wide one", "A region of a b#ü.png"]
    links = [unquote(urlparse(link["href"] or "").path) for link in page.all("a")]
    assert links == [wide, str(name)]
    assert [bar["style"] for bar in page.all("span") if "width" in (bar.get("style") or "")] == ["width:100%", "width:25%"]  # fmt: skip
    (drawn,) = {tuple(rect[side] for side in ("x", "y", "width", "height")) for rect in page.all("rect")}
    assert drawn == ("10", "20", "20", "15.5")
    assert page.all("svg")[0]["viewbox"] == "0 0 48 40"  # pixels of the picture, not of the thumbnail
    for said in ("2 of 1,234 in pets.index", "by toy (model 1", "where year > 3", "score of 0.1 or more", "0.800", "2,020", wide):  # fmt: skip
        assert said in page.text


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(tmp_path / "a.png")
    page = Page(contact_sheet([Hit("a", 1, 0, {"path": str(tmp_path / "a.png")})], asked()))
    assert np.asarray(thumbnail(page)).min() == 255


def test_what_cannot_be_shown_says_so(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"bad")
    hits = [
        Hit("x", 0.5, 0, {"path": str(tmp_path / "gone.png")}),
        Hit("y", 0.4, 1, {"path": str(tmp_path / "bad.png")}),
        Hit("z", 0.3, 2, {"caption": "words alone"}),
        Hit("n" * 5000, -0.1, 3, {"path": "n" * 5000, "box": ["a", None, 3]}),
    ]
    page = Page(contact_sheet(hits, asked()))
    assert page.all("img") == page.all("a") == page.all("rect") == []
    for said in ("The picture is gone.", "bad.png: not a picture that can be read", "words alone", "-0.100"):
        assert said in page.text
    assert "Nothing fits." in Page(contact_sheet([], asked())).text


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    path = str(tmp_path / EVIL.replace("/", "∕"))
    saved(Path(path))
    turn = "\u202egpj.exe\x1b[31m\udcff"
    record = {"path": path, "caption": EVIL, EVIL: EVIL, "box": [0, 0, 9, 9], "note": turn}
    question = asked(Part(EVIL, 1.0), Part(EVIL, -0.5, path), where=EVIL)
    written = contact_sheet([Hit(EVIL, 0.5, 0, record)], question)
    page = Page(written)
    assert page.all("script") == []
    assert all(name.startswith("on") is False for _, attributes in page.elements for name in attributes)
    assert [image["alt"] for image in page.all("img")] == [EVIL, f"A region of {EVIL}"]
    assert not {"\u202e", "\x1b", "\udcff"} & set(written)
    policy = {meta.get("http-equiv"): meta.get("content") for meta in page.all("meta")}
    assert (policy["Content-Security-Policy"] or "").startswith("default-src 'none'")
    sources = [value or "" for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")]  # fmt: skip
    assert all(source.startswith(("data:image/jpeg", "file:///")) for source in sources)


def test_an_unescaped_sheet_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "_text", broken(sheet._text, 'escape("".join', '("".join'))
    page = Page(contact_sheet([Hit("<script></script>", 0.5, 0, {})], asked()))
    assert page.all("script") != []


def test_the_question_is_shown(tmp_path: Path) -> None:
    path = saved(tmp_path / "cat.png")
    vectors = list(np.eye(4, dtype=np.float32))
    query = Query(["red", ("big", 2)], [path, vectors[0], picture(2)], "snow", vectors[1])
    parts = parts_of(query, [Item("stored", {"path": path})])
    assert [(part.label, part.weight) for part in parts] == [
        ("red", 1), ("big", 2), ("cat.png", 0.7), ("stored", 0.7), ("a picture", 0.7), ("snow", -0.5), ("a vector", -0.35),
    ]  # fmt: skip
    assert words_of(parts) == "red + big + cat.png + stored + a picture − snow − a vector"
    assert words_of(parts[5:6]) == "− snow"
    gone = Part("stored", 0.7, tmp_path / "gone.png")
    page = Page(contact_sheet([], asked(*parts, gone)))
    assert [image["alt"] for image in page.all("img")] == ["cat.png", "stored", "a picture"]
    assert "not snow" in page.text
    assert "its picture is gone" in page.text
    assert sum(item.get("class") == "not" for item in page.all("li")) == 2
