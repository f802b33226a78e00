"""`--boxes` of classify and embed: regions named by a JSON Lines file, as `detect --json` prints it too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Edgeclip
from tests.runtime.detectors import scene
from tests.runtime.regions import make_regions

PICTURE = scene({(0, 0): (255, 0, 0), (3, 4): (0, 0, 255)})
BOXES = [[0, 0, 8, 8], [32, 24, 40, 32]]


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(make_regions(tmp_path / "regions").root)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def boxes_file(folder: Path, *entries: Any) -> str:
    file = folder / "boxes.jsonl"
    file.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries))
    return str(file)


def test_regions_are_classified(edgeclip: Edgeclip, bundle: str, picture: str, tmp_path: Path) -> None:
    found = [{"label": "a cup", "score": 0.5, "box": box} for box in BOXES]
    file = boxes_file(
        tmp_path,
        {"path": picture, "boxes": BOXES},
        "",
        {"path": "x", "error": "y"},
        {"path": picture, "detections": found},
    )
    said = edgeclip("classify", "--boxes", file, "-b", bundle, "--labels", "red,green,blue", "--json")
    assert said.code == 0
    assert len(said.records) == 2
    for record in said.records:
        assert record["path"] == picture
        assert [(region["label"], region["box"]) for region in record["regions"]] == [
            ("red", BOXES[0]),
            ("blue", BOXES[1]),
        ]
    table = edgeclip("classify", "--boxes", file, "-b", bundle, "--labels", "red,green,blue").out
    assert "red" in table
    assert "blue" in table


def test_regions_are_embedded(edgeclip: Edgeclip, bundle: str, picture: str, tmp_path: Path) -> None:
    file, output = boxes_file(tmp_path, {"path": picture, "boxes": BOXES}), tmp_path / "out.npz"
    said = edgeclip("embed", "--boxes", file, "-b", bundle, "-o", str(output), "--json")
    arrays = np.load(output)
    assert arrays["items"].tolist() == [picture, picture]
    np.testing.assert_array_equal(arrays["boxes"], BOXES)
    np.testing.assert_allclose(said.record["embeddings"], arrays["embeddings"], atol=1e-6)
    np.testing.assert_allclose(arrays["embeddings"], [[1, 0, 0, 0.05], [0, 0, 1, 0.05]], atol=0.01)


def test_one_bad_picture_is_not_fatal(edgeclip: Edgeclip, bundle: str, picture: str, tmp_path: Path) -> None:
    file = boxes_file(
        tmp_path,
        {"path": picture, "boxes": [[5, 5, 5, 9]]},
        {"path": "no such.png", "boxes": BOXES},
        {"path": picture, "boxes": BOXES},
    )
    said = edgeclip("classify", "--boxes", file, "-b", bundle, "--label", "red", "--json")
    assert said.code == 0
    assert ["error" in record for record in said.records] == [True, True, False]
    assert "expected x1 < x2 and y1 < y2" in said.err
    assert edgeclip("classify", "--boxes", file, "-b", bundle, "--label", "red", "--strict").code == 1


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("{", ":1: expected .* got no JSON"),
        ({"path": "a.png"}, ":1: expected .* got "),
        ({"boxes": BOXES}, ":1: expected .* got "),
        ("[1]", r":1: expected .* got \[1\]"),
        ("", "holds no picture"),
    ],
    ids=["no JSON", "no boxes", "no path", "a list", "empty"],
)
def test_bad_files_are_refused_in_one_line(
    edgeclip: Edgeclip, bundle: str, tmp_path: Path, entry: Any, reason: str
) -> None:
    said = edgeclip("classify", "--boxes", boxes_file(tmp_path, entry), "-b", bundle, "--label", "red")
    assert said.code == 2
    assert re.search(reason, said.line)


def test_pictures_or_boxes(edgeclip: Edgeclip, bundle: str, picture: str, tmp_path: Path) -> None:
    file = boxes_file(tmp_path, {"path": picture, "boxes": BOXES})
    said = edgeclip("classify", picture, "--boxes", file, "-b", bundle, "--label", "red")
    assert said.line.startswith("edgeclip: Pass either pictures or --boxes FILE.")
    said = edgeclip("embed", "--text", "red", "--boxes", file, "-b", bundle, "--json")
    assert said.line.startswith("edgeclip: Pass either pictures, --text or --boxes FILE.")
    assert edgeclip("classify", "--boxes", "no such.jsonl", "-b", bundle, "--label", "red").code == 2
