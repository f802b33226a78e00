"""Average precision: COCO's figures as pycocotools has them, LVIS's as lvis has them, and those that can be worked by hand."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.evaluate.annotations import Annotations, read_annotations
from edgeclip.evaluate.average_precision import Found, Precision, precision_of, read_found
from edgeclip.evaluate.splits import OV_COCO

COCO64 = Path(__file__).parents[2] / "../shared/data/coco64/instances.json"
needs_coco64 = pytest.mark.skipif(not COCO64.is_file(), reason=f"needs the annotations {COCO64}")


def coco(pictures: int = 12, classes: int = 6, seed: int = 0) -> dict[str, Any]:
    """Annotations of every size, with crowds, empty pictures, and a class without a box."""
    rng = np.random.default_rng(seed)
    images = [
        {"id": 7 * i + 3, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(pictures)
    ]
    categories = [{"id": 90 - 5 * k, "name": f"class {k}"} for k in range(classes)]  # not in the order of ids
    boxes = []
    for image in images[:-1]:
        for _ in range(rng.integers(1, 9)):
            w, h = np.exp(rng.uniform(2, 5.5, 2))
            boxes.append(
                {
                    "id": len(boxes),  # from 0, which pycocotools takes for no match
                    "image_id": image["id"],
                    "category_id": categories[int(rng.integers(0, classes - 1))]["id"],
                    "bbox": [*rng.uniform(0, 300, 2).tolist(), w, h],
                    "area": w * h * rng.uniform(0.5, 1),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    return {"images": images, "categories": categories, "annotations": boxes}


def lvis(seed: int = 0) -> dict[str, Any]:
    data = coco(14, 9, seed)
    rng = np.random.default_rng(seed)
    ids = [category["id"] for category in data["categories"]]
    for i, category in enumerate(data["categories"]):
        category["frequency"] = "rcf"[i % 3]
    for box in data["annotations"]:
        del box["iscrowd"]
        box["id"] += 1
    for image in data["images"]:
        held = {b["category_id"] for b in data["annotations"] if b["image_id"] == image["id"]}
        others = [i for i in ids if i not in held]
        image["neg_category_ids"] = rng.permutation(others)[:3].tolist()
        image["not_exhaustive_category_ids"] = [i for i in sorted(held) if rng.random() < 0.4]
    return data


def detections(data: dict[str, Any], seed: int = 1, ties: bool = False) -> list[dict[str, Any]]:
    """Some of the boxes, moved; some twice, some of another class, some of nothing."""
    rng = np.random.default_rng(seed)
    ids = [category["id"] for category in data["categories"]]
    rows = []
    for box in data["annotations"]:
        for _ in range(rng.integers(0, 3)):
            x, y, w, h = box["bbox"]
            moved = [x + rng.normal(0, w / 12), y + rng.normal(0, h / 12), w * rng.uniform(0.8, 1.2), h]
            category = box["category_id"] if rng.random() < 0.8 else ids[int(rng.integers(len(ids)))]
            rows.append({"image_id": box["image_id"], "category_id": category, "bbox": moved})
    for image in data["images"]:
        for _ in range(4):
            box = [*rng.uniform(0, 300, 2).tolist(), *rng.uniform(5, 200, 2).tolist()]
            rows.append(
                {"image_id": image["id"], "category_id": ids[int(rng.integers(len(ids)))], "bbox": box}
            )
    for row in rows:
        row["score"] = round(float(rng.random()), 1) if ties else float(rng.random())
    return rows


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., Precision]:
    def judge(
        data: dict[str, Any], rows: list[dict[str, Any]], split: str = "none", **options: Any
    ) -> Precision:
        annotations = read(tmp_path, data).split(split)
        (tmp_path / "found.json").write_text(json.dumps(rows))
        return precision_of(annotations, read_found(tmp_path / "found.json", annotations), **options)

    return judge


def read(folder: Path, data: Any) -> Annotations:
    path = folder / "annotations.json"
    path.write_text(json.dumps(data))
    return read_annotations(path)


def pycocotools(
    data: dict[str, Any], rows: list[dict[str, Any]], classes: list[int] | None = None
) -> list[float]:
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        renumbered = [{**box, "id": i} for i, box in enumerate(data["annotations"], 1)]
        truth.dataset = {**data, "annotations": renumbered}
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes([dict(row) for row in rows]), "bbox")
        judge.params.catIds = classes or judge.params.catIds
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(x) for x in judge.stats]


def twelve(found: Precision) -> list[float]:
    values = [
        found.ap,
        found.ap50,
        found.ap75,
        found.ap_small,
        found.ap_medium,
        found.ap_large,
        *found.ar.values(),
        found.ar_small,
        found.ar_medium,
        found.ar_large,
    ]
    return [-1.0 if value is None else value for value in values]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_the_twelve_figures_are_those_of_pycocotools(judged: Any, seed: int, ties: bool) -> None:
    data = coco(seed=seed)
    rows = detections(data, seed, ties)
    found = judged(data, rows, interval=False)
    np.testing.assert_allclose(twelve(found), pycocotools(data, rows), rtol=0, atol=1e-6)
    assert 0.1 < found.ap < 0.9
    for one in found.per_class:
        id_ = next(c["id"] for c in data["categories"] if c["name"] == one.name)
        ap, ap50 = pycocotools(data, rows, [id_])[:2]
        np.testing.assert_allclose(
            [-1 if v is None else v for v in (one.ap, one.ap50)], [ap, ap50], rtol=0, atol=1e-6
        )


@needs_coco64
def test_photographs_annotated_by_people(judged: Any) -> None:
    data = json.loads(COCO64.read_text())
    rows = detections(data)
    np.testing.assert_allclose(
        twelve(judged(data, rows, interval=False)), pycocotools(data, rows), rtol=0, atol=1e-6
    )


def test_more_than_a_hundred_detections_of_a_class(judged: Any) -> None:
    data = coco(3, 2)
    rng = np.random.default_rng(0)
    rows = [
        {
            "image_id": data["images"][0]["id"],
            "category_id": data["categories"][0]["id"],
            "bbox": [*rng.uniform(0, 300, 2), *rng.uniform(9, 99, 2)],
            "score": float(rng.random()),
        }
        for _ in range(300)
    ] + detections(data)
    np.testing.assert_allclose(
        twelve(judged(data, rows, interval=False)), pycocotools(data, rows), rtol=0, atol=1e-6
    )


def lvis_package(
    data: dict[str, Any], rows: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, float]:
    monkeypatch.setattr(np, "float", float, raising=False)  # it was written for numpy 1
    if "lvis" not in sys.modules:
        pytest.importorskip("matplotlib").use("Agg")
    LVIS, LVISEval, LVISResults = (
        getattr(pytest.importorskip("lvis"), name) for name in ("LVIS", "LVISEval", "LVISResults")
    )
    path = folder / "lvis.json"
    path.write_text(json.dumps(data))
    truth = LVIS(str(path))
    judge = LVISEval(truth, LVISResults(truth, [dict(row) for row in rows]), "bbox")
    judge.run()
    return {name: float(value) for name, value in judge.get_results().items()}


@pytest.mark.parametrize("seed", range(4))
def test_lvis_rules_are_those_of_lvis(
    judged: Any, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lvis(seed)
    rows = detections(data, seed)
    if seed == 3:  # more than LVIS looks at in a picture
        first = rows[0]
        rows += [
            {**first, "bbox": [i % 40, i % 30, 50 + i % 7, 40], "score": 0.3 + i / 2000} for i in range(600)
        ]
    found = judged(data, rows, "lvis", interval=False)
    want = lvis_package(data, rows, tmp_path, monkeypatch)
    groups = {group.name: group.ap for group in found.groups}
    got = {
        "AP": found.ap,
        "AP50": found.ap50,
        "AP75": found.ap75,
        "APs": found.ap_small,
        "APm": found.ap_medium,
        "APl": found.ap_large,
        "APr": groups["rare"],
        "APc": groups["common"],
        "APf": groups["frequent"],
        "AR@300": found.ar["300"],
        "ARs@300": found.ar_small,
        "ARm@300": found.ar_medium,
        "ARl@300": found.ar_large,
    }
    assert set(got) == set(want)
    for name, value in want.items():
        assert (-1 if got[name] is None else got[name]) == pytest.approx(value, abs=1e-6), name


def perfect(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**box, "score": 0.9} for box in data["annotations"] if not box.get("iscrowd")]


def test_the_truth_itself_is_perfect_and_shifted_boxes_lose_what_they_must(judged: Any) -> None:
    data = coco()
    found = judged(data, perfect(data))
    assert (found.ap, found.ap50, found.ar["100"]) == (1, 1, 1)
    assert found.ap50_interval == (1, 1)
    # moved by a fifth of its width a box has an IoU of 0.8 / 1.2: right at 0.50, 0.55, 0.60, 0.65, wrong at the other six
    apart = {"images": data["images"], "categories": data["categories"], "annotations": []}
    for i, image in enumerate(data["images"]):
        box = {"id": i, "image_id": image["id"], "category_id": 90, "bbox": [100, 100, 60, 60], "area": 3600}
        apart["annotations"].append(box)
    rows = [{**box, "bbox": [112, 100, 60, 60]} for box in perfect(apart)]
    found = judged(apart, rows)
    assert found.ap == pytest.approx(0.4)
    assert (found.ap50, found.ap75) == (1, 0)
    assert found.ap_small is None
    assert found.ap_medium == pytest.approx(0.4)


def test_no_detection_at_all(judged: Any) -> None:
    found = judged(coco(), [])
    assert (found.ap, found.ap50_interval, found.detections) == (0, None, 0)
    nothing = judged({**coco(), "annotations": []}, detections(coco()))
    assert (nothing.ap, nothing.ap50_interval) == (None, None)


def test_the_interval_holds_the_figure_and_shrinks_with_pictures(judged: Any) -> None:
    widths = []
    for pictures in (6, 60):
        data = coco(pictures)
        found = judged(data, detections(data))
        low, high = found.ap50_interval
        assert low < found.ap50 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2  # by the square root of ten, if all were equal
    assert judged(data, detections(data)).ap50_interval == found.ap50_interval, "the draws are fixed"


def named(classes: list[str]) -> dict[str, Any]:
    data = coco(20, len(classes))
    for category, name in zip(data["categories"], classes, strict=True):
        category["name"] = name
    for i, category in enumerate(data["categories"]):
        category["id"] = 29 * i % len(classes)  # base and novel ones mixed, as in COCO
    rng = np.random.default_rng(2)
    for box in data["annotations"]:
        box["category_id"] = int(rng.integers(0, len(classes)))
    return data


def test_ov_coco_judges_its_65_classes_and_the_pictures_that_hold_one(judged: Any, tmp_path: Path) -> None:
    base, novel = OV_COCO["base"], OV_COCO["novel"]
    assert (len(set(base)), len(set(novel)), set(base) & set(novel)) == (48, 17, set())
    names = [*base, "stop sign", *novel, "kitchen sink"]
    data = named(names)
    ids = {category["name"]: category["id"] for category in data["categories"]}
    alone = data["images"][-1]["id"]  # has no box until now
    data["annotations"].append(
        {"id": 1, "image_id": alone, "category_id": ids["stop sign"], "bbox": [1, 2, 30, 40]}
    )
    annotations = read(tmp_path, data).split("ov-coco")
    assert len(annotations.categories) == 65
    assert alone not in {image.id for image in annotations.images}
    rows = detections({**data, "images": [i for i in data["images"] if i["id"] != alone]})
    rows = [
        row
        for row in rows
        if row["category_id"] not in (ids["stop sign"], ids["kitchen sink"]) and row["image_id"] != alone
    ]
    found = judged(data, rows, "ov-coco", interval=False)
    for group, labels in zip(found.groups, (base, novel), strict=True):
        ap, ap50 = pycocotools(data, rows, [ids[label] for label in labels])[:2]
        assert (group.ap, group.ap50) == (pytest.approx(ap, abs=1e-6), pytest.approx(ap50, abs=1e-6))
    with pytest.raises(InputError, match=r"ov-coco expects COCO's classes; person, .* not among its 6"):
        read(tmp_path, coco()).split("ov-coco")
    with pytest.raises(InputError, match='--split lvis expects the "frequency"'):
        read(tmp_path, coco()).split("lvis")


@needs_coco64
def test_the_split_names_classes_of_coco() -> None:
    names = {c["name"] for c in json.loads(COCO64.read_text())["categories"]}
    assert len(names) == 80
    assert {name for group in OV_COCO.values() for name in group} <= names


def broken(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    data = coco(3, 3)
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("images"), 'an object with the lists "images", "annotations" and "categories"'),
        (lambda d: d["images"][1].pop("id"), r'images\[1\]: expected an object with an integer "id"'),
        (lambda d: d["images"][1].pop("file_name"), r'images\[1\]: expected a "file_name" or a "coco_url"'),
        (lambda d: d["images"][1].update(file_name="../x.jpg"), r"below the folder of pictures, got '../x.jpg'"),
        (lambda d: d["images"][1].update(file_name="/x.jpg"), "below the folder"),
        (lambda d: d["images"][1].update(height=None), r'images\[1\]: expected "height" and "width" in pixels'),
        (lambda d: d["images"][1].update(id=3), "images: 3 is there twice"),
        (lambda d: d["categories"][1].update(id=90), "categories: 90 is there twice"),
        (lambda d: d["categories"][1].update(name="class 0"), "categories: 'class 0' is there twice"),
        (lambda d: d["categories"][1].update(name=" "), r'categories\[1\]: expected a "name"'),
        (lambda d: d.update(categories=[]), "at least one image and one category"),
        (lambda d: d["annotations"].insert(0, 5), r"annotations\[0\]: expected an object, got 5"),
        (lambda d: d["annotations"][0].update(image_id=1), r"annotations\[0\].image_id: expected the id of an im"),
        (lambda d: d["annotations"][0].update(category_id="a"), r"\[0\].category_id: expected the id of a category"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), r"annotations\[0\].bbox: expected \[left, top, w"),
        (lambda d: d["annotations"][0].update(bbox=[9, 9, -1, 3]), "a width and height of 0 or more"),
        (lambda d: d["annotations"][0].update(bbox=[9, 9, float("nan"), 3]), "expected a finite number, got nan"),
        (lambda d: d["annotations"][0].update(area="big"), r"annotations\[0\].area: expected a finite number"),
        (lambda d: d["annotations"][0].update(area=10**400), r"annotations\[0\].area: expected a finite number"),
        (lambda d: d["annotations"][0].update(bbox=[9, 9, 1e39, 3]), r"annotations\[0\].bbox: expected a finite"),
        (lambda d: d["images"][1].update(id=2**63), r'images\[1\]: expected an object with an integer "id"'),
    ],
    ids=range(21),
)  # fmt: skip
def test_annotations_that_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        read(tmp_path, broken(change))
    assert str(tmp_path / "annotations.json") in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read \(No such file"):
        read_annotations(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad\.json: no JSON"):
        read_annotations(tmp_path / "bad.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"deep\.json: no JSON"):
        read_annotations(tmp_path / "deep.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"bytes\.json: no JSON"):
        read_annotations(tmp_path / "bytes.json")
    annotations = read(tmp_path, coco())
    for rows, message in (
        ({}, "expected COCO results, a list"),
        (
            [{"image_id": 3, "category_id": 90, "bbox": [1, 2, 3, 4]}],
            r"results\[0\].score: expected a finite",
        ),
        ([{"image_id": 4}], r"results\[0\].image_id"),
    ):
        (tmp_path / "found.json").write_text(json.dumps(rows))
        with pytest.raises(InputError, match=message):
            read_found(tmp_path / "found.json", annotations)


def test_lvis_names_its_pictures_by_their_address(tmp_path: Path) -> None:
    data = lvis()
    for image in data["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    annotations = read(tmp_path, data)
    assert annotations.images[2].name == "2.jpg"
    assert annotations.groups == ("rare", "common", "frequent")
    for value in ("x", []):
        data["categories"][0]["frequency"] = value
        with pytest.raises(InputError, match=r'categories\[0\].frequency: expected "r", "c" or "f"'):
            read(tmp_path, data)
    for value in (None, [[1]]):
        data["images"][0]["neg_category_ids"] = value
        with pytest.raises(
            InputError, match=r"images\[0\].neg_category_ids: expected a list of categories' ids"
        ):
            read(tmp_path, data)


def test_the_extra_is_named_when_it_is_missing(judged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeclip\[eval\]'"):
        judged(coco(), [])


def test_found_goes_out_as_it_came_in(tmp_path: Path) -> None:
    annotations, rows = read(tmp_path, coco()), detections(coco())
    (tmp_path / "found.json").write_text(json.dumps(rows))
    found: Found = read_found(tmp_path / "found.json", annotations)
    assert found.to_coco() == rows
