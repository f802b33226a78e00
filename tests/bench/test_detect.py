"""The task that finds things: the runtime's own detections, a tower of its own in every part, and when it is the bundle's purpose."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edgeclip import load
from edgeclip.bench.between import Nothing
from edgeclip.bench.matrix import _rows
from edgeclip.bench.plan import check_settings
from edgeclip.bench.report import PictureSet
from edgeclip.bench.roofline import measure_roofline
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.bench.stages import measure_stages
from edgeclip.bench.tasks import AUTO, detect, for_bundle, open_task, picture_tower_of, tower_of
from edgeclip.bench.variants import measure_variants
from edgeclip.errors import InputError
from edgeclip.runtime.model import Model
from tests.mutants import broken
from tests.runtime.detectors import make_detector
from tests.runtime.toy import make_bundle

LABELS = ("red", "blue")
BRIEF = Settings(task="detect", labels=LABELS, part_seconds=0.01, threads=1)


def _picture(*cells: tuple[int, int, tuple[int, int, int]]) -> bytes:
    pixels = np.zeros((64, 64, 3), np.uint8)
    for row, column, colour in cells:
        pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = colour
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES = (_picture((1, 2, (255, 0, 0))), _picture((3, 3, (0, 0, 255)), (6, 1, (255, 0, 0))))
INPUTS = Inputs(PICTURES, (), PictureSet("pictures", 2, 0, 0, ""))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_detector(tmp_path_factory.mktemp("planted") / "toy")


@pytest.fixture(scope="module")
def model(planted: Any) -> Any:
    with load(planted, threads=1) as model:
        yield model


def _found(result: Any) -> list[tuple[str, list[int]]]:
    return [
        (name, box.round().astype(int).tolist()) for name, box in zip(result.names, result.boxes, strict=True)
    ]


def test_a_query_finds_what_the_runtime_finds(model: Model) -> None:
    task = open_task("detect", model, INPUTS, BRIEF)
    one, several = task.query([0]), task.query([1, 0, 0])
    assert _found(one) == [("red", [14, 6, 26, 18])]
    assert [sorted(result.names) for result in several] == [["blue", "red"], ["red"], ["red"]]  # type: ignore[attr-defined]
    assert _found(one) == _found(model.detect(PICTURES[0], list(LABELS)))
    assert (task.unit, task.samples) == ("picture", 2)


def test_labels_are_embedded_before_any_query(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    task = open_task("detect", model, INPUTS, BRIEF)
    model.keep_texts(0)
    monkeypatch.setattr(type(model._prompts), "embed", lambda *_, **__: pytest.fail("a text was embedded"))
    task.query([0])


def test_a_baked_detector_goes_by_its_own_labels(tmp_path: Path) -> None:
    with load(make_detector(tmp_path / "baked", heads=("labels",), text=False), threads=1) as model:
        assert detect.labels_of(model, Settings(task="detect")) is None
        assert _found(open_task("detect", model, INPUTS, Settings(task="detect")).query([0]))[0][0] == "red"
        with pytest.raises(
            InputError,
            match=r"task 'detect' needs a detector tower that gives embeddings or prompts; .*give labels",
        ):
            open_task("detect", model, INPUTS, BRIEF)


def test_baked_labels_of_a_classifier_beside_are_not_the_detectors(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model), "labels", ("a label", "of pictures"))
    pack = detect.labels_of(model, Settings(task="detect"))
    assert pack is not None
    assert len(pack.labels) == 20


def test_every_part_measures_the_detector(
    planted: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Peaks:  # what this machine can do takes seconds to measure, and says nothing of towers
        product = copy = lambda *_: (1.0, "")

    monkeypatch.setattr("edgeclip.bench.roofline.Peaks", Peaks)
    stages = measure_stages(model, open_task("detect", model, INPUTS, BRIEF), BRIEF, Nothing())
    assert {"decode", "preprocess", "image tower", "head"} <= {stage.name for stage in stages.stages}
    (roof,) = measure_roofline(planted, model, BRIEF)
    assert roof.variant.startswith("detector")
    points = measure_variants(planted, BRIEF, INPUTS, Nothing())
    assert [(point.id, point.runs) for point in points] == [("detector-fp32", True)]
    rows = _rows(planted, BRIEF, ("onnxruntime-cpu",), (), ("embeddings",))
    assert [variant.tower for _, variant in rows] == ["detector"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"detector" if tower_of(name) == "detector" else "image"', '"image"'),
        ('== "detector"', '!= "detector"'),
    ],
)
def test_a_part_that_takes_the_image_tower_is_caught(
    old: str, new: str, planted: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeclip.bench.variants.picture_tower_of", broken(picture_tower_of, old, new))
    assert measure_variants(planted, BRIEF, INPUTS, Nothing()) == ()


def test_what_a_bundle_is_for(planted: Any, tmp_path: Path) -> None:
    auto = replace(BRIEF, task=AUTO)
    check_settings(auto)
    both = make_detector(tmp_path / "both", image=True)
    classifier = make_bundle(tmp_path / "toy")
    chosen = {
        name: for_bundle(auto, b).task
        for name, b in (("detector", planted), ("both", both), ("classifier", classifier))
    }
    assert chosen == {"detector": "detect", "both": "classify", "classifier": "classify"}
    assert for_bundle(replace(auto, task="embed"), planted).task == "embed"
    assert {name: tower_of(name) for name in ("classify", "detect", "embed-text")} == {
        "classify": "image", "detect": "detector", "embed-text": "text"
    }  # fmt: skip


def test_the_command_measures_a_detector_by_itself(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeclip.cli import cli

    class Seen(Exception):
        pass

    def seen(images: object, task: str, settings: Settings) -> None:
        raise Seen(task, settings.task, settings.labels)

    monkeypatch.setattr("edgeclip.bench.measure.load_inputs", seen)
    monkeypatch.setattr("edgeclip.bench.samples.load_inputs", seen)
    for words in ([], ["compare", "--live", str(planted.root)], ["matrix"]):
        found = CliRunner().invoke(cli, ["bench", *words, str(planted.root), "--label", "red"])
        assert isinstance(found.exception, Seen), (words, found.output, found.exception)
        assert found.exception.args == ("detect", "detect", ("red",))
