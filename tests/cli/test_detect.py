"""`edgeclip detect` on pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip import Detections, LabelPack
from edgeclip.cli.detect import parse_example
from edgeclip.errors import InputError
from tests.cli.conftest import Edgeclip, Said
from tests.runtime.detectors import make_detector, pack_of, scene

RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detectors")
    make_detector(folder / "plain", objectness=True)
    make_detector(folder / "baked", heads=("labels",), text=False)
    return folder


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Two pictures of the same name, and one that is none."""
    folder = tmp_path / "shots"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(scene({(2, 3): RED, (5, 1): GREEN})).save(folder / "a.png")
    Image.fromarray(scene({(6, 6): BLUE})).save(folder / "below/a.png")
    (folder / "bad.png").write_text("no picture")
    return folder


@pytest.fixture
def detect(edgeclip: Edgeclip, bundles: Path, shots: Path) -> Any:
    """Runs `edgeclip detect`, on the folder of pictures unless others are named."""

    def call(*arguments: object, bundle: str = "plain", pictures: object = None) -> Said:
        return edgeclip("detect", pictures or shots, "-b", bundles / bundle, "--threads", 1, *arguments)

    return call


def names(record: dict[str, Any]) -> list[str]:
    return [row["label"] for row in record["detections"]]


def test_a_folder_with_a_bad_picture(detect: Any, shots: Path) -> None:
    said = detect("--prompts", "a red cup, green,blue", "--json")
    assert said.code == 0
    first, bad, second = said.records
    assert (first["path"], first["size"]) == (str(shots / "a.png"), [64, 64])
    assert names(first) == ["a red cup", "green"]
    assert first["detections"][0]["box"] == [22, 14, 34, 26]
    assert "not a picture" in bad["error"]
    assert names(second) == ["blue"]
    assert said.err.count("skipped: ") == 1
    assert detect("--prompts", "red", "--strict").code == 1
    assert detect("--prompts", "red", pictures=shots / "bad.png").code == 2
    table = detect("--prompts", "[a red cup [a red cup], green]")
    assert "22 14 34 26" in table.out
    assert "detector-fp32 on onnxruntime-cpu" in table.out
    assert "within" in table.out
    nothing = detect("--label", "yellow", pictures=shots / "a.png")
    assert "nothing" in nothing.out
    assert "within" not in nothing.out


def test_labels_in_every_way(detect: Any, shots: Path, tmp_path: Path) -> None:
    one, pack = shots / "a.png", tmp_path / "own.labels"
    pack_of(["red", "green"], (0.95, 0.1)).save(pack)
    assert LabelPack.open(pack).thresholds is not None
    (tmp_path / "labels.txt").write_text("# colours\nred\ngreen\n")
    want = ["red", "green"]
    for arguments in (
        ["--labels", "red,green"],
        ["--labels", f"@{tmp_path / 'labels.txt'}"],
        ["--label", "red", "--label", "green"],
        ["--prompts", "red", "--label", "green"],
        ["--prompts", "[red, green]"],
        ["--prompts", "red, green", "--tile", "64:0.2"],
        ["--pack", pack, "--threshold", "0.1"],
        ["--pack", pack, "--threshold", "red=0.1"],
    ):
        assert names(detect(*arguments, "--json", pictures=one).record) == want, arguments
    assert names(detect("--pack", pack, "--json", pictures=one).record) == ["green"]
    assert names(detect("--json", bundle="baked", pictures=one).record) == want
    assert names(
        detect(
            "--labels", "red,green", "--threshold", "0.95", "--threshold", "green=0.5", "--json", pictures=one
        ).record
    ) == ["green"]
    assert names(detect("--labels", "red,green", "--max", "1", "--json", pictures=one).record) == ["red"]
    shown = f"{shots / 'below/a.png'}:48,48,56,56=that blue"
    found = detect("--example", shown, "--label", "red", "--json", pictures=shots / "below/a.png").record
    assert names(found) == ["that blue"]
    threshold = ["--threshold", "0.5", "--threshold", "that blue=1"]
    assert (
        names(detect("--example", shown, *threshold, "--json", pictures=shots / "below/a.png").record) == []
    )


def test_what_is_written(detect: Any, shots: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = detect(
        "--labels",
        "red,green,blue",
        "--save",
        out / "drawn",
        "--jsonl",
        tmp_path / "all.jsonl",
        "--format",
        "coco",
        "-o",
        out / "coco.json",
    )
    assert said.code == 0
    assert sorted(p.name for p in (out / "drawn").iterdir()) == ["a-2.jpg", "a.jpg"]
    drawn = np.asarray(Image.open(out / "drawn/a.jpg")).astype(int)
    assert drawn.shape == (64, 64, 3)
    assert np.abs(drawn - scene({(2, 3): RED, (5, 1): GREEN})).max() > 100, "something was drawn"
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [names(line) for line in lines] == [["red", "green"], ["blue"]]
    coco = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [
        str(shots / "a.png"),
        str(shots / "below/a.png"),
    ]
    assert [(row["id"], row["image_id"], row["category_id"]) for row in coco["annotations"]] == [
        (1, 1, 1),
        (2, 1, 2),
        (3, 2, 3),
    ]
    assert coco["annotations"][0]["bbox"] == [22, 14, 12, 12]
    assert coco["categories"][2] == {"id": 3, "name": "blue"}
    assert detect("--labels", "red,green,blue", "--format", "yolo", "-o", out / "yolo").code == 0
    labels = (out / "yolo/classes.txt").read_text().split()
    read = Detections.from_yolo((out / "yolo/a.txt").read_text(), labels, (64, 64))
    assert read.names == ["red", "green"]
    np.testing.assert_allclose(read.boxes[0], [22, 14, 34, 26], atol=1e-3)
    assert Detections.from_yolo((out / "yolo/a-2.txt").read_text(), labels, (64, 64)).names == ["blue"]
    assert detect("--label", "red\ncup", "--format", "yolo", "-o", out / "lines").code == 0
    assert (out / "lines/classes.txt").read_text() == "red cup\n"
    (piped_coco,) = detect("--labels", "red,green,blue", "--format", "coco", "-o", "-").records
    assert piped_coco == coco
    piped = detect("--labels", "red", "--jsonl", "-")
    assert next(record.get("path", "") for record in piped.records) == str(shots / "a.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to look for. Pass --prompts 'a face, a cup'"),
        (["--prompts", "[red"], "prompts, column 5: expected , or ], got the end"),
        (["--prompts", "[red]", "--label", "x"], "--prompts in [brackets] stand alone"),
        (["--prompts", " , "], "prompts: expected one or more"),
        (["--label", "red", "--threshold", "x"], "--threshold 'x': expected a score of 0 to 1"),
        (["--label", "red", "--threshold", "2"], "threshold: expected 0 to 1, got 2.0"),
        (["--label", "red", "--threshold", "blue=0.3"], "threshold: 'blue' is not among the labels red"),
        (["--label", "red", "--tile", "big"], "--tile 'big': expected pixels and a share"),
        (["--label", "red", "--tile", "640:2"], "tile: expected a size of 1 pixel or more"),
        (["--label", "red", "--format", "coco"], "--format and -o go together"),
        (
            ["--label", "red", "--show", "--all", "--max-frames", "3"],
            "--show, --max-frames, --all: for --source",
        ),
        (["--label", "red", "--save", "found.mp4"], "--save found.mp4: expected a folder"),
        (["--label", "red", "--format", "yolo", "-o", "-"], "--format yolo writes a file for each picture"),
        (["--label", "red", "--json", "--format", "coco", "-o", "-"], "all go to stdout; keep one"),
        (["--label", "red", "--save", "SHOTS"], "a.png itself. Expected another folder"),
        (["--label", "red", "--source", "0"], "Expected PICTURES or --source, and not both"),
        (["--label", "red", "--json", "--jsonl", "-"], "all go to stdout; keep one"),
        (
            ["--label", "red", "--example", "a.png:1,2,3"],
            "--example 'a.png:1,2,3': expected PICTURE:X1,Y1,X2,Y2=LABEL",
        ),
        (
            ["--label", "red", "--example", "a.png:3,2,1,4"],
            "--example 'a.png:3,2,1,4'.box: expected (x1, y1, x2, y2)",
        ),
        (["--example", "no.png"], "examples[0]: no.png: "),
    ],
)
def test_what_is_refused_in_one_line(arguments: list[str], message: str, detect: Any, shots: Path) -> None:
    given = [shots if word == "SHOTS" else word for word in arguments]
    said = detect(*given, pictures=shots / "a.png")
    assert said.code == 2
    assert message in said.line


def test_no_detector_and_no_pictures(edgeclip: Edgeclip, toy: Path, shots: Path) -> None:
    said = edgeclip("detect", shots / "a.png", "-b", toy, "--label", "red")
    assert said.code == 2
    assert "this bundle has no detector; it can classify" in said.line
    assert "Export an OWL-ViT or OWLv2 to have one." in said.line
    assert "Expected PICTURES or --source" in edgeclip("detect", "--label", "red").line


def test_examples_on_the_command_line(tmp_path: Path) -> None:
    def parts(value: str) -> tuple[str, Any, str]:
        found = parse_example(value)
        return str(found.picture), found.box, found.label

    assert parts("can.jpg") == ("can.jpg", None, "example 1")
    assert parts("can.jpg=a can") == ("can.jpg", None, "a can")
    assert parts("can.jpg:1,2.5,30,40") == ("can.jpg", (1, 2.5, 30, 40), "example 1")
    assert parts(r"C:\x\can.jpg:1,2,30,40=a can") == (r"C:\x\can.jpg", (1, 2, 30, 40), "a can")
    odd = tmp_path / "a=b:1,2,3,4"
    odd.write_bytes(b"")
    assert parts(str(odd)) == (str(odd), None, "example 1")
    with pytest.raises(InputError, match="expected PICTURE:X1,Y1,X2,Y2=LABEL"):
        parse_example("can.jpg:1,2,3=a can")
