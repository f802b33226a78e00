"""Captions become phrases, a detector's answers become boxes, and training reads them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from edgeclip.models.training.data.region_tables import open_regions
from tests.runtime.detectors import box_of, make_detector, scene

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLES))
    yield import_module("pseudo_regions")
    sys.path.remove(str(EXAMPLES))


@pytest.mark.parametrize(
    ("caption", "want"),
    [
        ("A red cup on the table", ["red cup", "red", "cup", "table"]),
        (
            "two sleeping cats, a dog's bed",
            ["sleeping cats", "sleeping", "cats", "dog's bed", "dog's", "bed"],
        ),
        ("a b c d", ["b c d", "b c", "c d", "b", "c", "d"]),
        ("one of the", []),
        ("a dog and a dog", ["dog"]),
    ],
)
def test_phrases(example: ModuleType, caption: str, want: list[str]) -> None:
    assert example.phrases(caption) == want


def test_no_more_than_twenty_phrases(example: ModuleType) -> None:
    assert len(example.phrases(", ".join(f"thing{i}x" for i in range(50)))) == 20


def test_boxes_for_captions(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_detector(tmp_path / "bundle")
    pictures = {
        "one": (scene({(1, 2): (250, 0, 0), (5, 5): (0, 0, 200)}), "a red cup, and a blue face"),
        "two": (scene({(3, 3): (0, 250, 0)}), "a green face"),
        "three": (scene({(3, 3): (0, 250, 0)}), "one of the"),
    }
    (tmp_path / "pictures").mkdir()
    lines = ["image,caption", "pictures/gone.png,a red cup"]
    for name, (pixels, caption) in pictures.items():
        Image.fromarray(np.asarray(pixels)).save(tmp_path / f"pictures/{name}.png")
        lines.append(f'pictures/{name}.png,"{caption}"')
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "regions.jsonl"
    arguments = ["pseudo_regions.py", str(tmp_path / "pairs.csv"), "-b", str(bundle.root), "-o", str(output)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--threshold", "0.5"])
    example.main()
    said = capsys.readouterr()
    assert "3 boxes in 3 pictures" in said.out
    assert "gone.png" in said.err
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"../pictures/{name}.png" for name in pictures]
    assert [len(row["regions"]) for row in rows] == [2, 1, 0]
    found = {region["text"].split()[0]: region["box"] for row in rows for region in row["regions"]}
    for text, want in (("red", box_of(1, 2, 250)), ("blue", box_of(5, 5, 200)), ("green", box_of(3, 3, 250))):
        np.testing.assert_allclose(found[text], want, atol=0.06)  # written to a tenth of a pixel
    table = open_regions(str(output), "")
    assert table.read(0)[0].is_file()
    assert table.regions(1)[0].shape == (1, 4)
