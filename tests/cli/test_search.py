"""`edgeclip search`: questions of several parts, of an index and of a folder, against answers worked out beside it."""

from __future__ import annotations

import json
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip as library
from edgeclip.cli import search
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.types import Origin
from tests.cli.conftest import Edgeclip
from tests.mutants import broken
from tests.runtime.toy import DIM, VOCABULARY, text_reference

ORIGIN = Origin("1" * 64, "toy", DIM)
TEXTS = ["a cat", "a dog", "a bicycle", "a cat of a dog", "photo of a bicycle", "photo"]


def vector(text: str) -> Any:
    """(D,) float64 of a text, by the toy's own arithmetic in numpy."""
    ids = [1, *(VOCABULARY[word] for word in text.split()), 2]
    return text_reference(np.array([ids], np.int32))[0]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Six items whose vectors are those of texts; every second one is large, and the last two are regions of one picture."""
    path = tmp_path / "six.index"
    rows = np.stack([vector(text) for text in TEXTS]).astype(np.float32)
    boxes: list[dict[str, Any]] = [{}, {}, {}, {}, {"box": [0, 0, 4, 4]}, {"box": [1, 1, 4, 4]}]
    keys = [*TEXTS[:4], "p.png#0,0,4,4", "p.png#1,1,4,4"]
    with Index.create(path, ORIGIN) as writer:
        records = [
            {"key": key, "n": i, "size": 10 + i % 2, **box}
            for i, (key, box) in enumerate(zip(keys, boxes, strict=True))
        ]
        writer.add(rows, records)
    return path


def ranked(question: Any, rows: list[int] | range = range(6)) -> list[int]:
    """Numbers of the items, best first."""
    scores = {i: float(vector(TEXTS[i]) @ question) for i in rows}
    return sorted(scores, key=lambda i: -scores[i])


def numbers(said: Any) -> list[int]:
    assert (said.code, said.err) == (0, "")
    assert [record["rank"] for record in said.records] == list(range(1, len(said.records) + 1))
    return [record["record"]["n"] for record in said.records]


def weigh(*parts: tuple[float, str]) -> Any:
    return sum(weight * vector(text) for weight, text in parts)


CASES = [
    (["a cat"], weigh((1, "a cat"))),
    (["a cat", "of", "photo"], weigh((1, "a cat"), (1, "of"), (1, "photo"))),
    (["a cat", "--not", "a dog"], weigh((1, "a cat"), (-0.5, "a dog"))),
    (["a cat", "--not", "a dog", "--not", "photo", "--negative-weight", 2], weigh((1, "a cat"), (-2, "a dog"), (-2, "photo"))),
    (["--weigh", "a cat", 0.3, "--weigh", "photo", -0.9], weigh((0.3, "a cat"), (-0.9, "photo"))),
    (["--not", "a cat"], weigh((-1, "a cat"))),
    (["photo", "--like", "a cat"], weigh((1, "photo"), (0.7, "a cat"))),
    (["photo", "--like", "a cat", "--image-weight", 3], weigh((1, "photo"), (3, "a cat"))),
]  # fmt: skip


@pytest.mark.parametrize(("options", "question"), CASES, ids=lambda x: " ".join(map(str, x)) if isinstance(x, list) else "")  # fmt: skip
def test_questions(options: list[Any], question: Any, index: Path, toy: Path, edgeclip: Edgeclip) -> None:
    own = [0] if "--like" in options else []
    rows = [i for i in range(6) if i not in own]  # what others shall be like is no answer
    assert numbers(edgeclip("search", index, *options, "-b", toy, "--json")) == ranked(question, rows)


def test_scores_filters_and_thresholds(index: Path, toy: Path, edgeclip: Edgeclip) -> None:
    asked = ["search", index, "a cat", "-b", toy, "--json"]
    every = edgeclip(*asked).records
    cosines = [float(vector(TEXTS[record["record"]["n"]]) @ vector("a cat")) for record in every]
    assert [record["score"] for record in every] == pytest.approx(cosines, abs=2e-3)  # stored in fp16
    assert every[0] == {"rank": 1, "key": "a cat", "score": every[0]["score"], "path": None, "record": {"n": 0, "size": 10}}  # fmt: skip
    assert numbers(edgeclip(*asked, "--where", "size > 10")) == ranked(vector("a cat"), [1, 3, 5])
    assert numbers(edgeclip(*asked, "--where", "n in (1, 2) or n >= 5", "-k", 2)) == ranked(vector("a cat"), [1, 2, 5])[:2]  # fmt: skip
    least = every[2]["score"] - 1e-5
    assert numbers(edgeclip(*asked, "--threshold", least, "--exact")) == ranked(vector("a cat"))[:3]
    grouped = numbers(edgeclip(*asked, "--group"))
    assert grouped == [i for i in ranked(vector("a cat")) if i != ranked(vector("a cat"), [4, 5])[1]]
    nothing = edgeclip(*asked[:-1], "--where", "n > 99")
    assert (nothing.code, nothing.line) == (0, f"edgeclip: {index}: nothing fits, of 6.")
    with Index.open(index) as full:
        Index.create(index.parent / "empty.index", full.origin).close()
    nothing = edgeclip("search", index.parent / "empty.index", *asked[2:-1])
    assert (nothing.code, nothing.line) == (0, f"edgeclip: {index.parent}/empty.index: nothing fits, of 0.")


def test_more_like_one_needs_no_model(index: Path, edgeclip: Edgeclip) -> None:
    assert numbers(edgeclip("search", index, "--like", "a dog", "--json")) == ranked(vector("a dog"), [0, 2, 3, 4, 5])  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "What to look for? Pass a TEXT, --image FILE, --like KEY or --not TEXT. See `edgeclip search --help`."),
        (["a cat"], "{index}: was made with toy (model 111111111111...), which is not embedded here. Pass its bundle with -b."),
        (["a cat", "-b", "nano"], "{index}: holds vectors of toy (model 111111111111..., width 8), the bundle is nano ("),
        (["--like", "zebra"], "{index}: no item 'zebra'."),
        ([" ", "-b", "{toy}"], "TEXT: expected a text, got an empty one."),
        (["a cat", "--not", "a cat", "--negative-weight", "1", "-b", "{toy}"], "query: its terms cancel out"),
        (["a cat", "--image", "none.png", "-b", "{toy}"], "none.png: cannot be read"),
        (["a cat", "--centre", "-b", "{toy}"], "query: no mean of kind 'text' is known"),
        (["a cat", "--where", "size >", "-b", "{toy}"], "filter: "),
        (["a cat", "--threshold", "2", "-b", "{toy}"], "Invalid value for '--threshold': 2.0 is not in the range"),
        (["--weigh", "a cat", "x", "-b", "{toy}"], "Invalid value for '--weigh': 'x' is not a valid float."),
        (["--weigh", "a cat", "nan", "-b", "{toy}"], "texts[0]: expected a weight of 0 or more, got nan"),
    ],
)  # fmt: skip
def test_refused_in_one_line(
    options: list[str], said: str, index: Path, toy: Path, edgeclip: Edgeclip
) -> None:
    found = edgeclip("search", index, *(option.format(toy=toy) for option in options))
    assert found.code == 2
    assert found.line.startswith(f"edgeclip: {said.format(index=index, toy=toy)}")


def test_an_index_of_nano_needs_no_bundle_option(tmp_path: Path, edgeclip: Edgeclip) -> None:
    names = ["apple", "car", "tree"]
    with library.load("nano", threads=1) as model, Index.create(tmp_path / "x.index", model) as writer:
        writer.add(model.embed_texts(names), names)
    said = edgeclip("search", tmp_path / "x.index", "a tree", "--threads", 1, "-k", 1, "--json")
    assert (said.code, said.record["key"]) == (0, "tree")


def test_a_folder_answers_the_same_questions(photos: Path, toy: Path, edgeclip: Edgeclip) -> None:
    """As an index built of it; the folder's keys are paths."""
    with library.load(toy) as model, Index.create(photos / "p.index", model) as writer:
        writer.add_images(sorted(str(path) for path in photos.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".bmp")))  # fmt: skip
    picture = photos / "a.png"
    for options in (
        ["a cat", "--not", "a dog", "--image", picture],
        ["--like", picture, "--not-image", photos / "b.JPG"],
        ["a cat", "--where", f"size >= {picture.stat().st_size}", "--threshold", -0.5, "-k", 2],
    ):
        of_index = edgeclip("search", photos / "p.index", *options, "-b", toy, "--json").records
        of_folder = edgeclip("search", photos, *options, "-b", toy, "--json").records
        assert of_index
        for one, other in zip(of_index, of_folder, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=2e-3)
            assert {**one, "score": 0} == {**other, "score": 0}
    early = edgeclip("search", photos, "a cat", "--image", "none.png", "-b", toy)
    assert (early.code, early.line[:29]) == (2, "edgeclip: none.png: cannot be")


def test_contact_sheet(
    photos: Path, toy: Path, tmp_path: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def browse(address: str) -> bool:
        shown.append(address)
        return True

    monkeypatch.setattr(webbrowser, "open", browse)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    page = tmp_path / "new" / "page.html"
    asked = ["search", photos, "a cat", "-b", toy, "--where", "size > 1", "--json"]
    said = edgeclip(*asked, "--html", page, "--open")
    assert (said.code, said.err) == (0, f"{page}: 3 pictures; no display to show it on\n")
    assert len(said.records) == 3
    assert page.read_text().count("data:image/jpeg") == 3
    assert all(text in page.read_text() for text in ("a cat", "where size &gt; 1", "by toy (model 1"))
    monkeypatch.setenv("DISPLAY", ":9")
    assert edgeclip(*asked, "--html", page, "--open").err == ""
    assert shown == [page.as_uri()]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert edgeclip(*asked, "--open").err == ""
    assert Path(shown[1].removeprefix("file://")).read_text() == page.read_text()
    blocked = edgeclip(*asked, "--html", photos / "a.png" / "x.html")
    assert (blocked.code, blocked.out) == (2, "")


def test_planted_faults_are_seen(
    index: Path, toy: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    for old, new, options in (
        ("hit.key not in asking.likes", "True", ["--like", "a dog"]),
        ("where=asking.where", "where=None", ["a cat", "--where", "size > 10"]),
        ("threshold=asking.threshold", "threshold=None", ["a cat", "--threshold", 0.9]),
    ):
        asked = ["search", index, *options, "-b", toy, "--json"]
        good = json.dumps(edgeclip(*asked).records)
        with monkeypatch.context() as patch:
            patch.setattr(search, "_ask", broken(search._ask, old, new))
            assert json.dumps(edgeclip(*asked).records) != good, old
