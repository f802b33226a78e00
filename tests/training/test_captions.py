"""Texts beside those of the data: captions by key, banks of texts, and pictures that have none."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from edgeclip.errors import TrainingError
from edgeclip.models.training.data.captions import digest_of, extra_captions, text_bank
from edgeclip.models.training.data.pictures import open_pictures

KEYS = ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.jsonl", '{"key": "a.png", "captions": ["one", "two "]}\n\n{"key": "a.png", "captions": "three"}\n{"key": "z", "captions": "x"}'),
        ("x.csv", "image;caption\na.png;one\na.png; two\nb.png;\na.png;three\nz;x\n"),
        ("x.tsv", "\ufeffkey\ttext\na.png\tone\na.png\ttwo\na.png\tthree\n"),
    ],
)  # fmt: skip
def test_captions_by_key(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert extra_captions(tmp_path / name, KEYS) == {"a.png": ["one", "two", "three"]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.txt", "a.png one", r"x\.txt is neither \.jsonl nor \.csv"),
        ("x.csv", "picture,caption\na.png,one\n", "no column key or id or image or path; there are 'picture', 'caption'"),
        ("x.jsonl", '{"key": "a.png"}', "line 1: no column caption or captions"),
        ("x.jsonl", '{"key": "a.png", "caption": "x"}\n{"key', r"x\.jsonl cannot be read"),
        ("x.jsonl", '{"key": "a.png", "caption": [1]}', "line 1: expected a key and a caption"),
        ("x.jsonl", '{"key": "A.PNG", "caption": "x"}', r"none of a picture of the data\. Its keys are like '.\.png'"),
    ],
)  # fmt: skip
def test_captions_that_cannot_be_used(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TrainingError, match=message):
        extra_captions(tmp_path / name, KEYS)


def test_captions_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"captions: .*gone\.csv cannot be read"):
        extra_captions(tmp_path / "gone.csv", KEYS)


def test_a_bank_keeps_order_and_drops_repeats(tmp_path: Path) -> None:
    file = tmp_path / "bank.txt"
    file.write_text("\ufeffa dog\n\n  a cat \na dog\n", encoding="utf-8")
    assert text_bank(file) == ("a dog", "a cat")
    assert digest_of(("a dog", "a cat")) != digest_of(("a cat", "a dog")) != digest_of(("a", "cat", "a dog"))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        TrainingError, match=r"text_bank: .*bank\.txt cannot be read .*Expected UTF-8 text, one a line"
    ):
        text_bank(file)


def test_pictures_without_texts(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match="data: expected a folder of pictures beside a text bank, got 'shapes:5'"
    ):
        open_pictures("shapes:5")
    with pytest.raises(TrainingError, match=r"holds no pictures\. They end in"):
        open_pictures(str(tmp_path))
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "deep/a.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "b.txt").write_text("described after all")
    found = open_pictures(str(tmp_path))
    assert list(found.keys) == ["b.png", "deep/a.jpg"]
    assert found.read(0) == (tmp_path / "b.png", [])
