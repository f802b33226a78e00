"""Labels in every form: lists, files, packs, templates, thresholds, and texts that are too long."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgeclip as library
from tests.cli.conftest import Edgeclip
from tests.runtime.toy import make_bundle

LONG = "cat " * 20  # the toy's texts have at most 12 tokens


def labels_of(edgeclip: Edgeclip, photos: Path, toy: Path, *options: object) -> list[str]:
    said = edgeclip("classify", photos / "a.png", "-b", toy, *options, "--json")
    assert said.code == 0, said.err
    return sorted(said.record["labels"])


def test_every_way_to_name_labels(photos: Path, toy: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeff# pets\na cat\n\n  a dog, old  \r\n # and\na bicycle".encode())
    for options, wanted in (
        (["--labels", "a cat, a dog,,"], ["a cat", "a dog"]),
        (["--label", "a cat, big", "--label", "a dog"], ["a cat, big", "a dog"]),
        (["--labels", f"@{file}"], ["a bicycle", "a cat", "a dog, old"]),
        (["--labels", f"@{file}", "--label", "a [b]"], ["a [b]", "a bicycle", "a cat", "a dog, old"]),
    ):
        assert labels_of(edgeclip, photos, toy, *options) == wanted


def test_refused_labels_are_one_line(photos: Path, toy: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    empty, binary, absent = (tmp_path / name for name in ("empty.txt", "binary.txt", "absent.txt"))
    empty.write_text("# nothing\n\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for options, message in (
        (
            [],
            "no labels. Pass --labels 'a cat,a dog', --labels @labels.txt, or --label 'a cat' once for each.",
        ),
        (["--labels", ","], "no labels. Pass"),
        (["--labels", f"@{empty}"], f"--labels @{empty}: the file holds no label. Expected one a line"),
        (
            ["--labels", f"@{absent}"],
            f"--labels @{absent}: cannot read the file (No such file or directory).",
        ),
        (["--labels", f"@{binary}"], f"--labels @{binary}: cannot read the file ('utf-8' codec can't decode"),
        (["--labels", f"@{tmp_path}"], f"--labels @{tmp_path}: cannot read the file (Is a directory)."),
        (
            ["--labels", "a,b,a"],
            "labels[2]: 'a' is also labels[0]; the two would share their score. Drop one.",
        ),
        (
            ["--label", "a", "--template", "photo"],
            "templates: 'photo' has no {} where the label goes. Write it",
        ),
    ):
        said = edgeclip("classify", photos / "a.png", "-b", toy, *options)
        assert said.code == 2
        assert said.line.startswith(f"edgeclip: {message}")


def test_templates_change_the_scores_as_in_the_library(photos: Path, toy: Path, edgeclip: Edgeclip) -> None:
    names, templates = ["a cat", "a dog"], ["a {}", "photo of {} {}"]
    options = ["--labels", ",".join(names)]
    for template in templates:
        options += ["--template", template]
    said = edgeclip("classify", photos / "a.png", "-b", toy, *options, "--json")
    with library.load(toy) as model:
        wanted = model.classify(photos / "a.png", names, templates)
        assert wanted.scores != model.classify(photos / "a.png", names).scores
    assert said.record["scores"] == pytest.approx(wanted.scores, abs=1e-6)


def test_pack_gives_what_its_labels_give(photos: Path, toy: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    pack = tmp_path / "made/pets.labels"
    made = edgeclip("labels", "make", "--labels", "a cat,a dog", "-b", toy, "-o", pack, "--json")
    assert made.record == {
        "path": str(pack),
        "labels": 2,
        "bytes": pack.stat().st_size,
        "model_id": "1" * 64,
    }
    lean = make_bundle(tmp_path / "lean", text=False).root  # neither text tower nor tokenizer
    with_pack = edgeclip("classify", photos, "-b", lean, "--pack", pack, "--json")
    plain = edgeclip("classify", photos, "-b", toy, "--labels", "a cat,a dog", "--json")
    assert with_pack.records == plain.records
    assert len(plain.records) == 3
    shown = edgeclip("labels", "show", pack, "--json").record
    assert (shown["labels"], shown["templates"]) == (["a cat", "a dog"], ["a photo of a {}"])
    assert (shown["model_id"], shown["dim"]) == ("1" * 64, 8)
    table = edgeclip("labels", "show", pack).out
    assert "a dog" in table
    assert "a photo of a {}" in table


def test_refused_packs(photos: Path, toy: Path, tmp_path: Path, edgeclip: Edgeclip) -> None:
    other = make_bundle(tmp_path / "other", model_id="2" * 64).root
    pack, junk = tmp_path / "pets.labels", tmp_path / "junk.labels"
    edgeclip("labels", "make", "--label", "a cat", "-b", other, "-o", pack)
    junk.write_bytes(b"junk")
    for options, message in (
        (
            ["--pack", pack],
            "this label pack was made by model 222222222222..., the bundle is 111111111111....",
        ),
        (["--pack", junk], f"{junk}: not a label pack that can be read"),
        (["--pack", pack, "--label", "a"], "--pack brings its own labels and templates; drop --labels,"),
    ):
        said = edgeclip("classify", photos / "a.png", "-b", toy, *options)
        assert said.code == 2
        assert said.line.startswith(f"edgeclip: {message}")


def test_threshold_answers_none_of_these(photos: Path, toy: Path, edgeclip: Edgeclip) -> None:
    asked = ["classify", photos / "a.png", "-b", toy, "--labels", "a cat,a dog"]
    best = edgeclip(*asked, "--json").record
    none = edgeclip(*asked, "--threshold", best["score"] + 1e-6, "--json").record
    assert none == {**best, "label": None, "label_index": -1}
    assert edgeclip(*asked, "--threshold", best["score"] - 1e-6, "--json").record == best
    table = edgeclip(*asked, "--threshold", 1).out
    assert "none of these" in table
    assert all(label in table for label in ("a cat", "a dog")), "the labels that fell short are shown"


def test_top_k(photos: Path, toy: Path, edgeclip: Edgeclip) -> None:
    asked = ["classify", photos / "a.png", "-b", toy, "--labels", "cat,dog,of", "--json"]
    full, cut = edgeclip(*asked).record, edgeclip(*asked, "--top-k", 2).record
    assert cut == {**full, "labels": full["labels"][:2], "scores": full["scores"][:2]}


@pytest.mark.parametrize("verb", ["classify", "embed", "search"])
def test_cut_text_is_told_and_fails_strict(verb: str, photos: Path, toy: Path, edgeclip: Edgeclip) -> None:
    asked = {
        "classify": ["classify", photos / "a.png", "--label", LONG, "--label", "a dog"],
        "embed": ["embed", "--text", LONG, "--text", "a dog", "--json"],
        "search": ["search", photos, LONG],
    }[verb]
    said = edgeclip(*asked, "-b", toy)
    assert said.code == 0
    assert said.err.startswith("edgeclip: 1 of ")
    assert "longer than 12 tokens" in said.err
    assert said.err.endswith("; they were cut\n")
    strict = edgeclip(*asked, "-b", toy, "--strict")
    assert (strict.code, strict.out, strict.err) == (1, said.out, said.err)
    fits = ["a cat" if part is LONG else part for part in asked]
    assert edgeclip(*fits, "-b", toy, "--strict").code == 0
    assert edgeclip(*fits, "-b", toy, "--strict").err == ""
