"""`edgeclip inspect` of a bundle with mixtures: what it says of them, the use of each expert, and the picture of it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeclip.bench.render.experts import words
from edgeclip.bench.render.experts.shown import TILE, spread, tile_of
from edgeclip.bench.render.experts.tint import COLOURS, STRENGTH, rgb, tinted
from edgeclip.bundle import seal
from edgeclip.bundle.manifest import Experts
from edgeclip.runtime.experts import UseCounter
from tests.cli.conftest import Edgeclip, save_picture
from tests.runtime.mixtures import BLOCKS, make_mixtures

HOSTILE = "<img src=x onerror=alert(1)>&\"'\x1b[31m.png"
Attributes = list[tuple[str, str | None]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixtures(tmp_path_factory.mktemp("mixtures") / "toy", text=True).root


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: Attributes) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_a_bundle_says_of_its_mixtures(edgeclip: Edgeclip, bundle: Path, toy: Path) -> None:
    said = edgeclip("inspect", bundle)
    assert "image tower: 2 to 4, 2 for each token, in blocks 1, 3-4; as dense" in said.out
    assert "text tower: 3, 2 for each token, in blocks 0, 2; as dense" in said.out
    assert "experts" not in edgeclip("inspect", toy).out
    assert "expert_use" not in edgeclip("inspect", bundle, "--json").record


def test_capacities_and_drops(edgeclip: Edgeclip, tmp_path: Path) -> None:
    opened = make_mixtures(tmp_path / "toy")
    (image,) = (v for v in opened.manifest.variants if v.id == "image-fp32")
    assert image.experts is not None
    capped = replace(image.experts, capacities=((5, 9, 5, 5), (9, 9), (6, 6, 6, 6)), dropped=0.00412)
    also = replace(image, id="image-capped", experts=capped, axes=replace(image.axes, moe="capacity"))
    seal(opened.root, replace(opened.manifest, variants=(*opened.manifest.variants, also)))
    out = " ".join(edgeclip("inspect", opened.root).out.split())
    assert "as dense, capacity (an expert takes 5 to 9 tokens, 0.41 % of choices dropped)" in out


def test_the_use_of_experts(edgeclip: Edgeclip, bundle: Path, photos: Path) -> None:
    said = edgeclip("inspect", bundle, "--experts", photos)
    assert said.code == 0
    assert "image tower: 3 blocks of 2 to 4 experts, 2 for each token; 3 pictures, 51 tokens" in said.out
    assert re.search(r"3 +│ +50 % ████ │ +50 % ████ │ +│ +│ 100 %", said.out)
    assert "1 expert never used (block/expert): 4/3" in said.out.replace("\n", " ")
    assert "edgeclip experts SOURCE --prune-below" in said.out.replace("\n", " ")


def test_json(edgeclip: Edgeclip, bundle: Path, photos: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\n\na photo of a dog\n")
    found = edgeclip("inspect", bundle, "--experts", photos, "--texts", texts, "--json").record["expert_use"]
    assert set(found) == {"image", "text"}
    assert [one["block"] for one in found["image"]["blocks"]] == list(BLOCKS)
    assert found["text"]["samples"] == 2
    for one in found["image"]["blocks"]:
        assert sum(one["tokens"]) == 2 * found["image"]["tokens"]
    few = edgeclip("inspect", bundle, "--experts", photos, "--limit", 2, "--json").record["expert_use"]
    assert few["image"]["samples"] == 2


def test_the_page_needs_nothing_beside_it_and_a_name_stays_in_its_place(
    edgeclip: Edgeclip, bundle: Path, tmp_path: Path
) -> None:
    place = tmp_path / "out.html"
    for seed in range(3):
        save_picture(tmp_path / "photos" / f"{seed}.png", seed)
    save_picture(tmp_path / "photos" / HOSTILE.replace("/", ""), 4)
    said = edgeclip("inspect", bundle, "--experts", tmp_path / "photos", "--picture", place)
    assert (said.code, said.err) == (0, f"{place}: written\n")
    markup = place.read_text(encoding="utf-8")
    page = Page(markup)
    names = [name for name, _ in page.tags]
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(names)
    assert "default-src 'none'" in next(a["content"] for t, a in page.tags if "http-equiv" in a)
    for name, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on") or key in ("href", "srcset")]
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/jpeg;base64,")
            image = Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2])))
            assert (f"{image.width}", f"{image.height}") == (attributes["width"], attributes["height"])
            assert name == "img"
            assert attributes["alt"]
    outside = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", markup)
    assert not re.search(r"https?:|url\(|@import|\x1b", outside)
    assert HOSTILE.replace("\x1b", "\ufffd") in page.text
    assert names.count("img") == 4 * (1 + len(BLOCKS)) + 4 + 2 + 3, (
        "pictures with their maps, and a strip for each expert"
    )
    assert "took no patch" in page.text
    assert "as the tower sees them" in page.text
    assert "class token" in page.text


def test_a_page_of_texts_has_figures_only(edgeclip: Edgeclip, bundle: Path, tmp_path: Path) -> None:
    texts, place = tmp_path / "texts.txt", tmp_path / "out.html"
    texts.write_text("a cat\na photo of a dog\n")
    assert edgeclip("inspect", bundle, "--texts", texts, "--picture", place).code == 0
    page = Page(place.read_text(encoding="utf-8"))
    assert "Use by block: text tower" in page.text
    assert "img" not in [name for name, _ in page.tags]


def test_the_png(edgeclip: Edgeclip, bundle: Path, photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "out.png"
    assert edgeclip("inspect", bundle, "--experts", photos, "--limit", 1, "--picture", place).code == 0
    with Image.open(place) as image:
        legend = image.crop((0, 0, image.width, 160)).getcolors(1 << 20)
        size = image.size
    assert legend is not None
    assert {rgb(css) for css in COLOURS[:4]} <= {colour for _, colour in legend}
    assert size[1] > 4 * 160, "pictures below it"


def test_refusals(edgeclip: Edgeclip, bundle: Path, toy: Path, photos: Path, tmp_path: Path) -> None:
    old = make_mixtures(tmp_path / "old", routing=False).root
    only = make_mixtures(tmp_path / "only", image=False, text=True).root
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"none")
    blank = tmp_path / "blank.txt"
    blank.write_text("\n")
    for arguments, said in [
        ([toy, "--experts", photos], "no tower of this bundle has mixtures of experts"),
        ([old, "--experts", photos], "Export the source again: `edgeclip export` adds one."),
        ([only, "--experts", photos], "the mixtures of experts are in the text tower only. Pass texts."),
        ([bundle, "--experts", tmp_path / "empty"], "the folder holds no pictures"),
        ([bundle, "--experts", tmp_path / "nowhere"], "no such file, folder or glob"),
        ([bundle, "--texts", blank], "the file holds no text"),
        ([bundle, "--texts", tmp_path / "nowhere.txt"], "cannot read the file"),
        ([bundle, "--picture", "a.html"], "Pass --experts DIR or --texts FILE as well"),
        ([bundle, "--experts", photos, "--picture", "a.jpg"], "expected a name that ends in .html or .png"),
    ]:
        found = edgeclip("inspect", *arguments)
        assert (found.code, said in found.line) == (2, True), found
    found = edgeclip("inspect", bundle, "--experts", broken)
    assert found.code == 2
    assert len(found.err.splitlines()) == 2
    assert "none of the 1 pictures can be used" in found.err


def test_warnings_name_what_is_hardly_used() -> None:
    counter = UseCounter("image", Experts((2, 5), (4, 4), 1))
    shares = np.zeros((2, 1000, 4), np.float32)
    shares[0, :990, 0] = shares[0, 990:, 1] = 1  # 1 % of one, nothing of two
    shares[1, range(1000), np.arange(1000) % 4] = 1
    counter.add(0, shares)
    never, hardly = words.warnings(counter.use())
    assert "2 experts never used (block/expert): 2/2, 2/3. If pictures like these" in never
    assert "1 expert hardly used (block/expert): 2/1 (1.0 %)" in hardly
    shares[0] = shares[1]
    even = UseCounter("image", Experts((2, 5), (4, 4), 1))
    even.add(0, shares)
    assert words.warnings(even.use()) == []


def test_tints_lie_on_their_patches() -> None:
    grid = np.array([[0, 1], [2, 9]])
    found = np.asarray(tinted(np.full((32, 32, 3), 100, np.uint8), grid), np.float64)
    side = len(found) // 2
    for (row, column), expert in np.ndenumerate(grid):
        corner = found[row * side + 5, column * side + 5]
        wanted = (1 - STRENGTH) * 100 + STRENGTH * np.array(rgb(COLOURS[expert % len(COLOURS)]))
        np.testing.assert_allclose(corner, wanted, atol=1)
    assert (found[side] == 255).all(), "a line where experts change"
    first, tenth = found[: side - 1, : side - 1], found[side + 1 :, side + 1 :]
    assert np.ptp(first, axis=(0, 1)).max() > 50, "its number"
    assert abs(first - tenth).max() > 50


def test_a_tile_frames_its_patch_also_at_the_border() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    for row, column, frame in [(0, 0, (0, 0)), (1, 2, (20, 20)), (3, 3, (40, 40))]:
        tile = tile_of(pixels, (4, 4), row, column)
        assert tile.shape == (TILE, TILE, 3)
        assert tuple(np.argwhere(tile.any(axis=2)).min(axis=0)) == frame


def test_spread_takes_the_first_and_the_last() -> None:
    assert spread(range(12), 4) == (0, 4, 7, 11)
    assert spread(range(3), 4) == (0, 1, 2)
    assert spread(range(5), 1) == (0,)


@pytest.mark.parametrize("vision", ["usual", "protan", "deutan", "tritan"])
def test_colours_are_told_apart(vision: str) -> None:
    """As tints over a middle grey. Matrices for severity 1: Machado, Oliveira and Fernandes 2009, Table 1."""
    seen = {
        "usual": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }[vision]  # fmt: skip
    tints = np.array([rgb(css) for css in COLOURS]) / 255 * STRENGTH + 0.5 * (1 - STRENGTH)
    linear = np.where(tints <= 0.04045, tints / 12.92, ((tints + 0.055) / 1.055) ** 2.4) @ np.asarray(seen).T
    lab = _lab(np.clip(linear, 0, 1))
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1e3 * np.eye(len(lab))
    assert apart[:4, :4].min() > 28
    assert apart.min() > 12


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
