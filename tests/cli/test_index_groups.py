"""`edgeclip index dedupe`, `cluster` and `link`, and `edgeclip classify --captions`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeclip as package
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.types import Origin
from edgeclip.runtime.model import Model
from tests.cli.conftest import Edgeclip

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
NAMES = ("cat", "bicycle", "umbrella", "tree")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with package.load("nano") as opened:
        yield opened


@pytest.fixture(scope="module")
def made(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of four pictures; of the cat and the tree a smaller copy, of the cat the same file once more."""
    folder = tmp_path_factory.mktemp("groups")
    for name in NAMES:
        shutil.copy(PICTURES / f"{name}.png", folder / f"{name}.png")
    for name in ("cat", "tree"):
        image = Image.open(folder / f"{name}.png")
        image.resize((image.width // 2, image.height // 2)).save(folder / f"{name}-small.png")
    shutil.copy(folder / "cat.png", folder / "cat-again.png")
    files = sorted(folder.glob("*.png"), key=lambda path: (len(path.name), path.name))  # copies come last
    with Index.create(folder / "made.index", model) as index:
        index.add(
            model.embed_images(files),
            [{"key": path.stem, "path": str(path), "size": path.stat().st_size, "ocr": path.stem.partition("-")[0]} for path in files],
        )  # fmt: skip
    return folder / "made.index"


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    """One to change."""
    shutil.copytree(made, tmp_path / "own.index")
    return tmp_path / "own.index"


def test_copies_are_listed_and_nothing_is_removed(made: Path, edgeclip: Edgeclip) -> None:
    said = edgeclip("index", "dedupe", made)
    assert said.code == 0
    for word in ("cat", "cat-again", "cat-small", "tree-small"):
        assert word in said.out
    assert "umbrella" not in said.out
    assert "threshold 0.9" in said.err
    assert "suggested: two unrelated items have 0." in said.err
    assert "3 copies among 7 items, at a cosine of 0.9" in said.err
    with Index.open(made) as opened:
        assert len(opened) == 7


def test_json_tells_all_groups(made: Path, edgeclip: Edgeclip) -> None:
    found = edgeclip("index", "dedupe", made, "--json", "--threshold", 0.95, "--keep", "largest").record
    assert (found["items"], found["copies"], found["removed"], found["threshold"]) == (7, 3, 0, 0.95)
    kept = {group["kept"]["key"]: {copy["key"] for copy in group["copies"]} for group in found["groups"]}
    largest = (
        "cat"
        if (made.parent / "cat.png").stat().st_size >= (made.parent / "cat-small.png").stat().st_size
        else "cat-small"
    )
    assert kept[largest] == {"cat", "cat-again", "cat-small"} - {largest}


def test_copies_are_removed_once(index: Path, edgeclip: Edgeclip) -> None:
    assert "3 removed" in edgeclip("index", "dedupe", index, "--threshold", 0.95, "--apply").err
    with Index.open(index) as opened:
        assert sorted(opened.keys()) == sorted(NAMES)
    again = edgeclip("index", "dedupe", index, "--threshold", 0.95, "--apply", "--json").record
    assert (again["copies"], again["removed"], again["groups"]) == (0, 0, [])


def test_the_same_bytes(index: Path, edgeclip: Edgeclip) -> None:
    found = edgeclip("index", "dedupe", index, "--exact", "--apply", "--json").record
    assert [(group["kept"]["key"], group["copies"][0]["key"]) for group in found["groups"]] == [
        ("cat", "cat-again")
    ]
    assert found["removed"] == 1


def test_a_sheet_shows_what_is_kept_and_its_copies(made: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    edgeclip("index", "dedupe", made, "--threshold", 0.95, "--html", tmp_path / "copies.html")
    page = (tmp_path / "copies.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 5
    assert "copies at a cosine of 0.95 or more" in page
    assert page.index("cat-again") > page.index(">cat<")


def test_clusters_named_by_labels(made: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    found = edgeclip("index", "cluster", made, "-k", 4, "--labels", "a cat,a tree,a bicycle,an umbrella", "--json",
                     "-o", tmp_path / "c.jsonl", "--html", tmp_path / "c.html").record  # fmt: skip
    assert {one["label"]: one["size"] for one in found["clusters"]} == {
        "a cat": 3,
        "a tree": 2,
        "a bicycle": 1,
        "an umbrella": 1,
    }
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    numbers = {line["key"]: line["cluster"] for line in lines}
    assert len(lines) == 7
    assert numbers["cat"] == numbers["cat-again"] == numbers["cat-small"] == found["clusters"][0]["cluster"]
    assert (tmp_path / "c.html").read_text(encoding="utf-8").count("<figure>") == 4


def test_clusters_by_threshold(made: Path, edgeclip: Edgeclip) -> None:
    said = edgeclip("index", "cluster", made, "--threshold", 0.95)
    assert "2 clusters of 7 items; 2 in none" in said.err
    assert "cluster" in said.out
    assert (
        edgeclip("index", "cluster", made, "--threshold", 0.95, "--least", 3, "--json").record["clusters"][0][
            "size"
        ]
        == 3
    )


def test_clusters_of_pictures_with_their_texts(made: Path, edgeclip: Edgeclip) -> None:
    by_texts = edgeclip(
        "index", "cluster", made, "--threshold", 1, "--weight", 0, "--text-field", "ocr", "--json"
    )
    assert [one["size"] for one in by_texts.record["clusters"]] == [3, 2]  # equal texts are equal vectors
    assert [
        one["size"]
        for one in edgeclip("index", "cluster", made, "--threshold", 1, "--json").record["clusters"]
    ] == [2]


def test_entities_of_one_index(made: Path, edgeclip: Edgeclip) -> None:
    assert (
        "7 records of 4 entities, 2 with several" in edgeclip("index", "link", made, "--threshold", 0.05).err
    )
    lines = edgeclip("index", "link", made, "--threshold", 0.05, "--json").record["records"]
    entity = {line["key"]: line["entity"] for line in lines}
    assert entity["tree"] == entity["tree-small"] != entity["cat"]


def test_links_to_a_reference(made: Path, index: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    edgeclip("index", "remove", index, "tree", "tree-small", "cat-small", "cat-again")
    said = edgeclip("index", "link", made, index, "--threshold", 0.05, "-o", tmp_path / "pairs.jsonl")
    assert "5 of 7 records linked" in said.err
    pairs = {
        line["left"]: line["right"]
        for line in map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines())
    }
    assert (pairs["cat-small"], pairs["umbrella"], pairs["tree"]) == ("cat", "umbrella", None)


def test_what_is_tuned_is_used_from_then_on(index: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    labelled = tmp_path / "labelled.jsonl"
    with Index.open(index) as opened:
        keys = list(opened.keys())
    labelled.write_text(
        "".join(json.dumps({"key": key, "entity": key.partition("-")[0]}) + "\n" for key in keys)
    )
    assert edgeclip("index", "link", index).line.endswith(
        "Pass --threshold, or --tune FILE with labelled records."
    )
    said = edgeclip("index", "link", index, "--tune", labelled, "--text-field", "ocr")
    assert said.line.startswith(f"{index}.linkage.json: weight ")
    assert "adjusted Rand index 1.000 on these records" in said.line
    used = edgeclip("index", "link", index, "--json").record
    kept = json.loads(Path(f"{index}.linkage.json").read_text())
    assert (used["weight"], used["threshold"], kept["field"]) == (kept["weight"], kept["threshold"], "ocr")
    assert len({line["entity"] for line in used["records"]}) == 4
    assert edgeclip("index", "link", index, "--weight", 1, "--threshold", 0, "--json").record["weight"] == 1


def test_links_are_tuned_by_pairs(made: Path, index: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    edgeclip("index", "remove", index, "tree", "tree-small", "cat-small", "cat-again")
    labelled = tmp_path / "pairs.jsonl"
    labelled.write_text(
        '{"left": "cat-small", "right": "cat"}\n{"left": "umbrella", "right": "umbrella"}\n\n{"left": "tree", "right": null}\n'
    )
    found = edgeclip("index", "link", made, index, "--tune", labelled, "--text-field", "ocr", "--json").record
    assert (found["score"], found["of"], found["path"]) == (1, "F1 of links", f"{index}.linkage.json")
    assert edgeclip("index", "link", made, index, "--json").record["reference"] == str(index)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("dedupe {made} --apply", "--apply removes: pass the --threshold too that you looked at. See `edgeclip index dedupe --help`."),
        ("dedupe {made} --exact --chain", "--exact compares bytes; drop --threshold and --chain."),
        ("dedupe {made} --threshold 0.95 --keep newest", "keep 'newest': no duplicate has 'mtime' in its record. Choose 'first'."),
        ("cluster {made}", "Pass either -k N or --threshold X."),
        ("cluster {made} -k 9", "k: expected 1 to 7, the number of items, got 9."),
        ("link {made} --threshold 0.1 --weight 0.5", "text field 'caption': no record has it. They have ocr, path, size."),
        ("link {made} --tune {bad}", 'line 1: no JSON (Expecting value: line 1 column 1 (char 0)). Expected {{"key": KEY, "entity": NAME}}.'),
        ("link {made} --tune {strange}", 'strange: key \'lion\' is no key of the index. Expected lines like {{"key": KEY, "entity": NAME}}.'),
        ("link {made} --tune {twice}", "twice: 2 lines label 1 records; expected one line for each."),
        ("link {made} --tune {bad} --weight 1", "--tune learns weight and threshold; drop --weight, --threshold and -o."),
        ("link {made} {other} --threshold 0.1", "vectors of two models cannot be compared. Build one of them again."),
        ("dedupe {made}/none", "none"),
    ],
)  # fmt: skip
def test_refusals(arguments: str, line: str, made: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    places = {name: tmp_path / name for name in ("bad", "strange", "twice", "other")}
    places["bad"].write_text("no json\n")
    places["strange"].write_text('{"key": "lion", "entity": 1}\n')
    places["twice"].write_text('{"key": "cat", "entity": 1}\n{"key": "cat", "entity": 2}\n')
    Index.create(places["other"], Origin("2" * 64, "another", 192)).close()
    said = edgeclip("index", *(word.format(made=made, **places) for word in arguments.split()))
    assert said.code == 2
    assert line.replace("{{", "{").replace("}}", "}") in said.line


def test_pictures_named_without_labels(model: Model, made: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    texts = [
        "a cat",
        "a sleeping cat",
        "two cats",
        "a bicycle",
        "an old bicycle",
        "bicycles",
        "an umbrella",
        "umbrellas",
    ]
    with Index.create(tmp_path / "words.index", model) as words:
        words.add(model.embed_texts(texts), texts)
    pictures = [made.parent / f"{name}.png" for name in ("cat", "bicycle", "umbrella")]
    said = edgeclip("classify", *pictures, "--captions", tmp_path / "words.index", "--json")
    assert [record["label"] for record in said.records] == ["cat", "bicycle", "umbrella"]
    assert np.isclose(sum(said.records[0]["scores"]), 1)
    both = edgeclip("classify", *pictures, "--captions", tmp_path / "words.index", "--labels", "a cat")
    assert (both.code, "--captions finds its own labels" in both.line) == (2, True)
