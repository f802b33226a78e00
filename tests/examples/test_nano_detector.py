"""nano's detector learns on composed scenes: exact boxes, cells that answer, towers that stay, figures that can be trusted."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import edgeclip
from edgeclip.models.sources import load_source
from edgeclip.models.training import train, with_settings
from edgeclip.models.training.checkpoint import write_source

NANO = Path(__file__).parents[2] / "examples" / "nano"
COLOURS = ("red", "green", "blue")
NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in ("box", "disc", "bar", "drop")]


def drawing(name: str, colour: str = "") -> NDArray[np.uint8]:
    own, shape = name.split()
    picture = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(picture)
    where = {"box": (6, 6, 57, 57), "disc": (2, 2, 61, 61), "bar": (0, 20, 63, 43), "drop": (20, 0, 43, 63)}
    (draw.ellipse if shape in ("disc", "drop") else draw.rectangle)(where[shape], fill=colour or own)
    return np.asarray(picture)


@pytest.fixture
def nano(tmp_path: Path) -> Iterator[Any]:
    """The example's modules, and a folder as prepare.py leaves it."""
    rows = [(name, "train") for name in NAMES] + [("grey box", "validation"), ("grey disc", "validation")]
    items = [{"style": "noto", "key": n, "name": n, "tags": [], "split": split} for n, split in rows]
    (tmp_path / "training.json").write_text(json.dumps(items))
    np.save(tmp_path / "training.npy", np.stack([drawing(name) for name, _ in rows]))
    sys.path.insert(0, str(NANO))
    names = ("scenes", "scene_features", "evaluate_detection", "detector", "calibrate", "recipe", "tokenizer")
    yield SimpleNamespace(folder=tmp_path, **{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(NANO))


def test_boxes_are_where_the_drawings_are(nano: Any) -> None:
    """The same scene in two colours differs there and nowhere else."""
    red, blue = (
        nano.scenes.Drawings(np.stack([drawing(name, colour) for name in NAMES]), {n: [i] for i, n in enumerate(NAMES)}, NAMES)
        for colour in ("red", "blue")
    )  # fmt: skip
    alone = 0
    for number in range(25):
        one, other = (nano.scenes.compose(drawings, 5, number, varied=False) for drawings in (red, blue))
        np.testing.assert_array_equal(one.boxes, other.boxes)
        assert one.names == other.names
        ys, xs = np.nonzero(np.abs(one.picture.astype(int) - other.picture).max(2) > 100)
        np.testing.assert_allclose(one.boxes[:, :2].min(0), (xs.min(), ys.min()), atol=1)
        np.testing.assert_allclose(one.boxes[:, 2:].max(0), (xs.max() + 1, ys.max() + 1), atol=1)
        alone += len(one.boxes) == 1
    assert alone >= 1


def test_scenes_are_what_they_say(nano: Any) -> None:
    drawings = nano.scenes.drawings(nano.folder, "training", lambda item: item["split"] == "train")
    scenes = [nano.scenes.compose(drawings, 1, number) for number in range(25)]
    again = nano.scenes.compose(drawings, 1, 7)
    np.testing.assert_array_equal(scenes[7].picture, again.picture)
    assert not np.array_equal(scenes[7].picture, nano.scenes.compose(drawings, 2, 7).picture)
    sides = np.concatenate([(s.boxes[:, 2:] - s.boxes[:, :2]).max(1) for s in scenes])
    assert sides.min() < 30
    assert sides.max() > 120
    for scene in scenes:
        assert (scene.boxes >= 0).all()
        assert (scene.boxes <= 256).all()
        assert set(scene.names) <= set(NAMES)


def test_cells_answer_for_the_nearest_that_fits(nano: Any) -> None:
    from edgeclip.models.nano_detector import NanoDetectorConfig, grid

    centres, strides = (part.numpy() for part in grid(NanoDetectorConfig(), 8))
    # 16 pixels: the finest grid alone; 200: the coarsest alone; a line thinner than a cell has one all the same
    boxes = np.array([[102, 102, 118, 118], [10, 10, 210, 210], [240, 30, 243, 60]], np.float32)
    target = nano.detector.assign(boxes, centres, strides[:, 0])
    assert set(strides[target == 0, 0]) == {8.0}
    assert set(strides[target == 1, 0]) == {32.0}
    assert (target == 2).any()
    np.testing.assert_array_equal(centres[target == 0], [[108, 108], [116, 108], [108, 116], [116, 116]])
    away = np.abs(centres[target == 1] - 110)
    assert away.max() < 1.5 * 32
    # one upon the other, on one grid: the smaller keeps its cells, in whatever order they come
    both = np.array([[60, 60, 100, 100], [40, 40, 120, 120]], np.float32)
    for order in ([0, 1], [1, 0]):
        target = nano.detector.assign(both[order], centres, strides[:, 0])
        assert set(target[(centres == [72, 72]).all(1)]) == {order.index(0)}


def test_overlaps_by_hand(nano: Any) -> None:
    a, b = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    overlap, giou = nano.detector.overlaps(a, b)
    assert float(overlap) == pytest.approx(1 / 7)
    assert float(giou) == pytest.approx(1 / 7 - 2 / 9)


def test_average_precision_by_hand(nano: Any) -> None:
    evaluate = nano.evaluate_detection
    box, far = np.array([[10, 10, 50, 50]], np.float32), np.array([[100, 100, 150, 150]], np.float32)
    truth = [SimpleNamespace(boxes=box, names=("cat",)), SimpleNamespace(boxes=far, names=("dog",))]
    right = [evaluate.Found(t.boxes, np.ones(1, np.float32), list(t.names)) for t in truth]
    assert evaluate.average_precision(truth, right) == pytest.approx({"AP": 1, "AP50": 1})
    # the dog is called a cat, surer than the cat itself: half of the cat's precision, none of the dog's
    wrong = [replace(right[0], scores=np.full(1, 0.5, np.float32)), replace(right[1], names=["cat"])]
    assert evaluate.average_precision(truth, wrong)["AP50"] == pytest.approx(0.25)
    # 4 of 40 pixels beside it: an IoU of 0.67, right at four of ten thresholds
    beside = [replace(right[0], boxes=box + np.float32([8, 0, 8, 0])), right[1]]
    assert evaluate.average_precision(truth, beside) == pytest.approx({"AP": 0.7, "AP50": 1})
    assert evaluate.average_precision(truth, [evaluate.Found(box[:0], np.zeros(0), [])] * 2)["AP50"] == 0


def test_threshold_by_hand(nano: Any) -> None:
    evaluate = nano.evaluate_detection
    boxes = np.array(
        [[10, 10, 50, 50], [10, 10, 50, 50], [100, 100, 150, 150], [100, 100, 150, 150]], np.float32
    )
    truth = [SimpleNamespace(boxes=boxes[1:3], names=("cat", "dog"))]
    # a cat, the same cat again, a dog; then a dog where there is a dog already found
    found = [evaluate.Found(boxes, np.float32([0.9, 0.5, 0.4, 0.2]), ["cat", "cat", "dog", "dog"])]
    threshold, f1 = evaluate.best_threshold(truth, found)
    assert threshold == pytest.approx(0.4)
    assert f1 == pytest.approx(2 * 2 / (3 + 2))
    # a dog beside it, an IoU of a third, is none
    beside = [replace(found[0], boxes=boxes + np.float32([[0], [0], [25], [25]]) * np.float32([1, 0, 1, 0]))]
    assert evaluate.best_threshold(truth, beside)[1] == pytest.approx(2 * 1 / (1 + 2))


def test_prompts_hold_what_is_there_and_others(nano: Any) -> None:
    truth = [
        SimpleNamespace(boxes=np.zeros((2, 4)), names=pair) for pair in (("a", "b"), ("c", "c"), ("d", "e"))
    ]
    prompts = nano.evaluate_detection.asked(truth, others=2, seed=0)
    assert [len(names) for names in prompts] == [4, 3, 4]
    for scene, names in zip(truth, prompts, strict=True):
        assert set(scene.names) <= set(names) <= set("abcde")
        assert len(set(names)) == len(names)


def test_every_method_of_the_table_answers(nano: Any) -> None:
    drawings = nano.scenes.drawings(nano.folder, "training", lambda item: item["split"] == "train")
    scene = nano.scenes.compose(drawings, 1, 3, varied=False)
    evaluate = nano.evaluate_detection
    with edgeclip.load("nano") as model:
        found = {
            name: evaluate.METHODS[name](model, scene).ask(model, NAMES)
            for name in ("detector", "crops", "true boxes", "chance")
        }
    for name, seen in found.items():
        assert len(seen.boxes) == len(seen.scores) == len(seen.names) > 0, name
        assert set(seen.names) <= set(NAMES)
    assert {tuple(box) for box in found["true boxes"].boxes.tolist()} <= {
        tuple(b) for b in scene.boxes.tolist()
    }
    np.testing.assert_array_equal(found["chance"].boxes, scene.boxes)


def test_trains_the_head_and_nothing_else(nano: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nano.tokenizer.train(tmp_path)
    config = replace(
        nano.recipe.CONFIG,
        widths=(4, 8, 8, 8),
        depths=(0, 0, 1, 0),
        text_width=16,
        text_layers=1,
        embed_dim=16,
    )
    monkeypatch.setattr(nano.recipe, "CONFIG", config)
    plain = with_settings(nano.recipe.RECIPE, (f"data={tmp_path}",))
    write_source(tmp_path / "towers", nano.recipe.new_nano(plain))
    monkeypatch.setattr(nano.scene_features, "SHARD", 10)
    monkeypatch.setattr(nano.detector, "SCENES", 20)
    monkeypatch.setattr(nano.detector, "VALIDATION", 10)
    wishes = ("steps=2", "batch_size=4", "warmup_steps=1", "checkpoint_every=2", "log_every=1", "device=cpu")
    recipe = with_settings(
        nano.detector.RECIPE, (f"data={tmp_path}", f"init_from={tmp_path / 'towers'}", *wishes)
    )
    result = train(recipe, tmp_path / "run", progress=False)
    assert result.best_score is not None
    before, after = load_source(str(tmp_path / "towers")), load_source(str(result.model))
    assert after.digest == before.digest, "the towers moved, and with them the identity of every embedding"
    assert after.detection is not None
    assert after.detection.objectness
    assert after.detection.preprocessing is not None
    assert after.detection.preprocessing.size == (256, 256)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"finding", "placing", "naming", "asking", "resembling"} <= {key for line in lines for key in line}
    monkeypatch.setattr(nano.calibrate, "VALIDATION", 10)
    shift, threshold = nano.calibrate.calibrate(tmp_path, str(result.model), tmp_path / "model", range(2, 3))
    ready = load_source(str(tmp_path / "model"))
    assert shift == 2
    assert ready.digest == before.digest
    assert ready.detection is not None
    assert ready.detection.threshold == threshold
    one, other = (source.model.detector.head.output.bias.detach() for source in (after, ready))  # type: ignore[union-attr, operator]
    torch.testing.assert_close(other - one, torch.tensor([0.0] * 5 + [2.0] + [0.0] * 4))
    head = after.model.detector.head  # type: ignore[union-attr]
    assert float(head.output.weight.detach().abs().max()) > 0, "an untrained head has zeros there"  # type: ignore[union-attr, operator]
