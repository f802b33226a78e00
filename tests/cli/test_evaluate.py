"""What a model finds, and names, in annotated pictures: planted detectors whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgeclip as package
from edgeclip.errors import InputError
from edgeclip.evaluate.annotations import Annotations, read_annotations
from edgeclip.evaluate.average_precision import precision_of
from edgeclip.evaluate.detect import Settings, classify_all, detect_all, files_of, texts_of
from tests.cli.conftest import Edgeclip
from tests.runtime.detectors import box_of, make_detector, scene

LEVELS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
NAMES = ["blue", "red", "green"]  # their ids are 9, 4, 7


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Four pictures of coloured cells, and annotations of what the planted detector says of them."""
    folder, images, boxes = tmp_path / "pictures", [], []
    folder.mkdir()
    ids = dict(zip(NAMES, (9, 4, 7), strict=True))
    for i in range(4):
        cells = {(i, 2): "red", (6 - i, 5): "green", (2, 3 + i % 2): "blue"}
        Image.fromarray(scene({place: LEVELS[name] for place, name in cells.items()})).save(
            folder / f"{i}.png"
        )
        images.append({"id": 10 + i, "file_name": f"{i}.png", "width": 64, "height": 64})
        for (row, column), name in cells.items():
            x0, y0, x1, y1 = box_of(row, column, 255).clip(0, 64).tolist()
            boxes.append(
                {
                    "image_id": 10 + i,
                    "category_id": ids[name],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                }
            )
    data = {
        "images": images,
        "categories": [{"id": ids[name], "name": name} for name in NAMES],
        "annotations": boxes,
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    return make_detector(tmp_path / "planted", heads=("embeddings",)).root


def test_a_detector_that_sees_everything_has_an_ap_of_one(
    annotated: Path, planted: Path, edgeclip: Edgeclip, tmp_path: Path
) -> None:
    arguments = ["--coco", annotated, "--images", annotated.parent / "pictures", "-b", planted]
    said = edgeclip("evaluate", "detect", *arguments, "--detections", tmp_path / "found.json", "--json")
    assert (said.code, said.err) == (0, "")
    found = said.record
    assert found["ap"] == found["ap50"] == pytest.approx(1)
    assert (found["pictures"], found["boxes"], found["failed"]) == (4, 12, [])
    assert [(c["name"], c["boxes"]) for c in found["per_class"]] == [("red", 4), ("green", 4), ("blue", 4)]
    assert (found["split"], found["max_detections"], found["threshold"]) == ("none", 100, 0.001)
    assert found["templates"] == ["{}"]
    again = edgeclip(
        "evaluate", "detect", "--coco", annotated, "--predictions", tmp_path / "found.json", "--json"
    ).record
    assert {k: again[k] for k in ("ap", "ap75", "ar", "detections", "ap50_interval")} == {
        k: found[k] for k in ("ap", "ap75", "ar", "detections", "ap50_interval")
    }


def test_a_table_and_a_report(annotated: Path, planted: Path, edgeclip: Edgeclip, tmp_path: Path) -> None:
    said = edgeclip(
        *(
            "evaluate",
            "detect",
            "--coco",
            annotated,
            "--images",
            annotated.parent / "pictures",
            "-b",
            planted,
        ),
        *("--limit", 2, "-o", tmp_path / "report.json"),
    )
    assert said.code == 0
    assert "100.0" in said.out
    assert "2 pictures" in said.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["pictures"], report["ap50_interval"]) == (2, [1, 1])


def test_what_is_asked_for_comes_from_a_file_in_the_order_of_ids(
    annotated: Path, planted: Path, edgeclip: Edgeclip, tmp_path: Path
) -> None:
    base = [
        "evaluate",
        "detect",
        "--coco",
        annotated,
        "--images",
        annotated.parent / "pictures",
        "-b",
        planted,
    ]
    (tmp_path / "right.txt").write_text("a red cup\nthe green face\nblue\n")
    (tmp_path / "mixed.txt").write_text("green\nred\nblue\n")
    assert edgeclip(*base, "--labels-from", f"@{tmp_path}/right.txt", "--json").record["ap"] == pytest.approx(
        1
    )
    mixed = edgeclip(*base, "--labels-from", f"@{tmp_path}/mixed.txt", "--json").record
    assert {c["name"]: c["ap50"] > 0.9 for c in mixed["per_class"]} == {
        "red": False,
        "green": False,
        "blue": True,
    }
    (tmp_path / "short.txt").write_text("red\n")
    said = edgeclip(*base, "--labels-from", f"@{tmp_path}/short.txt")
    assert said.line.startswith("edgeclip: labels: expected 3, one a line for each category of")
    (tmp_path / "twice.txt").write_text("red\nred\nblue\n")
    assert "'red' is there twice" in edgeclip(*base, "--labels-from", f"@{tmp_path}/twice.txt").line
    assert "expected categories, baked, or @FILE" in edgeclip(*base, "--labels-from", "names").line


def test_baked_labels_are_matched_by_name(annotated: Path, edgeclip: Edgeclip, tmp_path: Path) -> None:
    base = ["evaluate", "detect", "--coco", annotated, "--images", annotated.parent / "pictures"]
    for labels, message in (
        (("green", "blue", "red"), ""),
        (("green", "blue"), "the model's baked labels lack 'red'"),
        (("green", "blue", "red", "cyan"), "the model's baked label 'cyan' is no category"),
    ):
        bundle = make_detector(tmp_path / f"baked{len(labels)}{labels[-1]}", heads=("labels",), labels=labels)
        said = edgeclip(*base, "-b", bundle.root, "--labels-from", "baked", "--json")
        if message:
            assert message in said.line
        else:
            assert said.record["ap"] == pytest.approx(1)
            assert said.record["templates"] is None


def test_pictures_that_cannot_be_read_are_named_and_their_boxes_missed(
    annotated: Path, planted: Path, edgeclip: Edgeclip
) -> None:
    folder = annotated.parent / "pictures"
    (folder / "1.png").write_bytes(b"no picture")
    (folder / "3.png").unlink()
    base = ["evaluate", "detect", "--coco", annotated, "--images", folder, "-b", planted, "--json"]
    said = edgeclip(*base)
    assert said.code == 0
    assert [line.partition("pictures/")[2][:5] for line in said.err.splitlines()] == ["1.png", "3.png"]
    assert [Path(row["path"]).name for row in said.record["failed"]] == ["1.png", "3.png"]
    # half of the boxes are missed and nothing is wrong: precision 1 up to recall 0.5, which is 51 of 101 points
    assert said.record["ap50"] == pytest.approx(51 / 101)
    assert edgeclip(*base, "--strict").code == 1
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    broken = edgeclip(*base)
    assert (broken.code, broken.out) == (2, "")
    for path in folder.iterdir():
        path.unlink()
    assert "holds none of the 4 pictures" in edgeclip(*base).line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Pass either --images, to run a model, or --predictions."),
        (["--predictions", "x.json", "--images", "."], "Pass either --images"),
        (["--predictions", "x.json", "-b", "nano"], "--predictions runs no model; drop --bundle"),
        (["--predictions", "x.json", "--template", "{}"], "--predictions runs no model; drop --bundle"),
        (["--predictions", "x.json"], "x.json: cannot be read"),
        (["--predictions", "x.json", "--split", "lvis"], "--split lvis expects the"),
        (["--images", "nowhere"], "nowhere: no such folder. Expected the one that the pictures lie in."),
        (
            ["--images", ".", "--labels-from", "baked", "--template", "{}"],
            "baked labels bring their templates",
        ),
    ],
    ids=range(8),
)
def test_wrong_command_lines(
    arguments: list[str], message: str, annotated: Path, planted: Path, edgeclip: Edgeclip
) -> None:
    model = ["-b", planted] if "--images" in arguments and "--predictions" not in arguments else []
    said = edgeclip("evaluate", "detect", "--coco", annotated, *arguments, *model)
    assert said.code == 2
    assert message in said.line


def test_a_bundle_without_a_detector_says_so(annotated: Path, edgeclip: Edgeclip, tmp_path: Path) -> None:
    from tests.runtime.toy import make_bundle

    toy = make_bundle(tmp_path / "toy").root
    said = edgeclip(
        "evaluate", "detect", "--coco", annotated, "--images", annotated.parent / "pictures", "-b", toy
    )
    assert said.code == 2
    assert "detector" in said.line


def read(path: Path) -> Annotations:
    return read_annotations(path)


def test_pictures_of_another_size_than_annotated_are_told(
    annotated: Path, planted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = read(annotated)
    first = replace(annotations.images[0], size=(50, 64))
    annotations = replace(annotations, images=(first, *annotations.images[1:]))
    with package.load(planted) as model:
        pack = model.make_prompts(texts_of(annotations, None))
        run = detect_all(model, annotations, annotated.parent / "pictures", pack, Settings())
    assert run.failures == ()
    assert [r.getMessage() for r in caplog.records if "annotated as" in r.getMessage()] == [
        f"{annotated.parent}/pictures/0.png: 64 x 64 pixels, annotated as 64 x 50: its boxes lie elsewhere."
    ]


def test_settings_reach_the_model(annotated: Path, planted: Path) -> None:
    annotations, folder = read(annotated), annotated.parent / "pictures"
    with package.load(planted) as model:
        pack = model.make_prompts(texts_of(annotations, None))
        few = detect_all(model, annotations, folder, pack, Settings(max_detections=2))
        assert len(few.found.scores) == 8
        strong = detect_all(model, annotations, folder, pack, Settings(threshold=0.5, batch_size=3))
        assert len(strong.found.scores) == 12
        assert precision_of(annotations, strong.found, interval=False).ap == pytest.approx(1)


def test_names_of_lvis_lose_their_underscores_and_files_their_folder(annotated: Path, tmp_path: Path) -> None:
    annotations = read(annotated)
    first = replace(annotations.categories[0], name="bow_(weapon)")
    renamed = replace(annotations, categories=(first, *annotations.categories[1:]))
    assert texts_of(renamed, None)[0] == "bow (weapon)"
    images = tuple(replace(image, name=f"val2017/{image.name}") for image in annotations.images)
    files = files_of(replace(annotations, images=images), annotated.parent / "pictures")
    assert [path.relative_to(annotated.parent).as_posix() for path in files] == [
        f"pictures/{i}.png" for i in range(4)
    ]


class Namer:
    """Names boxes by the mean colour that lies in them, and green ones wrongly in the first picture."""

    def classify_regions_each(self, paths: Any, boxes: Any, pack: Any, **options: Any) -> Any:
        assert (pack, options) == ("pack", {"top_k": 1, "batch_size": 8})
        for path, rows in zip(paths, boxes, strict=True):
            try:
                array = np.asarray(Image.open(path).convert("RGB"))
            except OSError:
                yield InputError(f"{path}: no picture")
                continue
            answers = []
            for x0, y0, x1, y1 in np.asarray(rows).round().astype(int).tolist():
                best = int(
                    array[y0:y1, x0:x1].reshape(-1, 3).mean(axis=0).argmax()
                )  # red, green, blue: by their ids
                answers.append(SimpleNamespace(label_index=0 if best == 1 and path.name == "0.png" else best))
            yield answers


def test_regions_are_named_by_class(annotated: Path) -> None:
    data = json.loads(annotated.read_text())
    # one more red box, which counts in its class alone; a crowd and a box without an area count nowhere
    red = next(box for box in data["annotations"] if box["category_id"] == 4)
    data["annotations"] += [red, {**red, "iscrowd": 1, "category_id": 7}, {**red, "bbox": [1, 1, 0, 5]}]
    annotated.write_text(json.dumps(data))
    folder, model, pack = annotated.parent / "pictures", Namer(), "pack"
    found = classify_all(model, read(annotated), folder, pack)  # type: ignore[arg-type]
    assert found.per_class == {"red": (5, 1), "green": (4, 0.75), "blue": (4, 1)}
    assert found.mean_per_class == pytest.approx(2.75 / 3)
    assert found.of_boxes == pytest.approx(12 / 13)
    (folder / "0.png").write_bytes(b"")
    found = classify_all(model, read(annotated), folder, pack)  # type: ignore[arg-type]
    assert (found.mean_per_class, [Path(path).name for path, _ in found.failures]) == (1, ["0.png"])
    data["annotations"] = data["annotations"][-2:]
    annotated.write_text(json.dumps(data))
    with pytest.raises(InputError, match="at least one box with an area"):
        classify_all(model, read(annotated), folder, pack)  # type: ignore[arg-type]


def test_a_detector_names_regions_too(
    annotated: Path, planted: Path, edgeclip: Edgeclip, tmp_path: Path
) -> None:
    folder = annotated.parent / "pictures"
    base = ["evaluate", "regions", "--coco", annotated, "--images", folder, "-b", planted]
    said = edgeclip(*base, "--json", "-o", tmp_path / "report.json")
    assert (said.code, said.err) == (0, "")
    assert (said.record["mean_per_class"], said.record["boxes"]) == (1, 12)
    assert said.record == json.loads((tmp_path / "report.json").read_text())
    assert said.record["per_class"][0] == {"name": "red", "boxes": 4, "accuracy": 1.0}
    table = edgeclip(*base)
    assert table.code == 0
    assert "12 boxes named" in table.out
    assert "Missing option '--images'" in edgeclip("evaluate", "regions", "--coco", annotated).line
    assert "boxes are named by texts" in edgeclip(*base, "--labels-from", "baked").line
    (folder / "1.png").write_bytes(b"")
    partly = edgeclip(*base, "--json", "--strict")
    assert (partly.code, partly.record["boxes"], len(partly.record["failed"])) == (1, 9, 1)
