"""A model that detects, on the planted detector: what it must find is known by arithmetic."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip import Detections, Example, load
from edgeclip.bundle import Bundle, Detection, seal
from edgeclip.errors import BundleError, EngineError, InputError
from edgeclip.runtime import stages
from edgeclip.runtime.detect import proposals
from edgeclip.runtime.detect.nms import iou_matrix
from edgeclip.runtime.detect.postprocess import within
from edgeclip.runtime.model import Model
from tests.mutants import broken
from tests.runtime import toy
from tests.runtime.detectors import (
    CROP,
    PAD,
    SQUASH,
    box_of,
    make_detector,
    pack_of,
    scene,
    score_of,
    vector_of,
)

RED, GREEN, GREY, BLUE = (255, 0, 0), (0, 128, 0), (128, 128, 128), (0, 0, 255)
CELLS = {(2, 3): RED, (5, 1): GREEN, (0, 7): RED}
HEADS = ("embeddings", "prompts", "labels")
Make = Callable[..., Model]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_detector(tmp_path_factory.mktemp("plain") / "b", heads=HEADS, objectness=True)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Opens a planted detector."""
    opened: list[Model] = []

    def call(**options: Any) -> Model:
        opened.append(load(make_detector(tmp_path / str(len(opened)), **options), threads=1))
        return opened[-1]

    yield call
    for model in opened:
        model.close()


def assert_found(found: Detections, want: list[tuple[str, float, NDArray[Any]]], atol: float = 1e-3) -> None:
    """(label, score, box), best first."""
    assert found.names == [label for label, _, _ in want]
    np.testing.assert_allclose(found.scores, [score for _, score, _ in want], rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        found.boxes, np.array([box for _, _, box in want]).reshape(-1, 4), rtol=0, atol=atol
    )


def cell(label: str, colour: tuple[int, int, int], row: int, column: int) -> tuple[str, float, NDArray[Any]]:
    """A filled cell of the square picture as it must be found: cut at the border."""
    return label, score_of(colour, column, label), box_of(row, column, max(colour)).clip(0, 64)


WANTED = [cell("red", RED, 0, 7), cell("red", RED, 2, 3), cell("green", GREEN, 5, 1)]


@pytest.mark.parametrize("head", HEADS)
def test_every_head_finds_what_is_there(head: str, make: Make) -> None:
    model = make(heads=(head,), objectness=True)
    labels = None if head == "labels" else ["red", "green"]
    picture = scene(CELLS)
    found = model.detect(picture, labels)
    assert_found(found, WANTED)
    assert (found.labels, found.size, found.parents) == (("red", "green"), (64, 64), None)
    assert (found.boxes.dtype, found.scores.dtype, found.label_indices.dtype) == (
        np.float32,
        np.float32,
        np.int64,
    )
    several = model.detect([picture, scene({}), picture], labels, batch_size=2)
    assert [len(one) for one in several] == [3, 0, 3]
    assert_found(several[2], WANTED)
    each = list(model.detect_each([picture, b"", picture], labels, batch_size=3))
    assert isinstance(each[1], InputError)
    assert isinstance(each[2], Detections)
    assert_found(each[2], WANTED)
    with pytest.raises(InputError, match=r"images\[1\]: the file is empty"):
        model.detect([picture, b""], labels)
    assert set(model.info().towers) - {"text"} == {"detector" if head == "embeddings" else f"detector-{head}"}
    assert model.labels == (("red", "green") if head == "labels" else ())


@pytest.mark.parametrize(
    ("preprocessing", "width", "scale", "shift"),
    [(SQUASH, 128, (2, 1.5), 0), (PAD, 128, (2, 2), 0), (CROP, 144, (1.5, 1.5), 24)],
)
def test_boxes_are_mapped_back_to_the_picture(
    preprocessing: Any, width: int, scale: tuple[float, float], shift: float, make: Make
) -> None:
    """Squashed, padded below (whose grey must not be found), or cropped to the 96 columns in the middle."""
    model = make(
        preprocessing=replace(preprocessing, resample="nearest")
    )  # no colour runs into the next cell
    x, y = scale
    picture = np.zeros((96, width, 3), np.uint8)
    for row, column in ((2, 3), (5, 1)):
        low = round(row * 8 * y), round(column * 8 * x + shift)
        picture[low[0] : low[0] + round(8 * y), low[1] : low[1] + round(8 * x)] = BLUE
    found = model.detect(picture, ["blue", "white"])
    want = [
        box_of(row, column, 255) * [x, y, x, y] + [shift, 0, shift, 0] for row, column in ((2, 3), (5, 1))
    ]
    assert found.names == ["blue", "blue"]
    np.testing.assert_allclose(found.boxes, np.clip(want, 0, [width, 96, width, 96]), rtol=0, atol=1e-3)
    assert found.size == (96, width)


def test_what_lies_in_the_padding_is_not_found(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey is found where the picture is grey, and not in the grey below it."""
    model = make(preprocessing=PAD)
    picture = scene({(1, 1): GREY}, 64, 32)

    def check() -> None:
        found = model.detect(picture, ["white"], threshold=0.1, nms_iou=1)
        assert len(found) == 1
        np.testing.assert_allclose(found.boxes[0], box_of(1, 1, 128), atol=0.02)

    check()
    monkeypatch.setattr(proposals, "within", broken(within, "(centre <= edge)", "(centre <= 1e9)"))
    with pytest.raises(AssertionError):
        check()


def test_files_turned_by_exif_and_decoded_at_a_reduced_scale(plain: Bundle) -> None:
    """1024 x 512 pixels that a camera stored lying: boxes are of the upright picture at its full size."""
    pixels = np.zeros((1024, 512, 3), np.uint8)
    pixels[128:256, 192:256] = RED
    upright = Image.fromarray(pixels)
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", quality=95, subsampling=0, exif=exif)
    want = np.array([box_of(1, 3, 255) * [8, 16, 8, 16]], np.float32)
    for decode in ("fast", "exact"):
        with load(plain, threads=1, decode=decode) as model:  # type: ignore[arg-type]
            found = model.detect(stream.getvalue(), ["red"], threshold=0.6)
        assert found.size == (1024, 512)
        assert iou_matrix(found.boxes, want).max() > 0.9


def test_thresholds(plain: Bundle) -> None:
    picture = scene(CELLS)
    with load(plain, threads=1) as model:

        def labels(threshold: Any = None, wanted: Any = ("red", "green")) -> list[str]:
            return model.detect(picture, wanted, threshold=threshold).names

        assert labels(0.89) == ["red", "red"]
        assert labels({"red": 0.92}) == ["red", "green"], "the other label keeps the default"
        assert labels({"red": 1, "green": 0.881}) == []
        assert labels(wanted=pack_of(["red", "green"], (0.92, 0.1))) == ["red", "green"]
        assert labels(0.1, pack_of(["red", "green"], (0.92, 0.1))) == ["red", "red", "green"]
        assert labels({"green": 1}, pack_of(["red", "green"], (0.92, 0.1))) == ["red"]
        assert len(labels(0)) == min(
            300, model.detect(picture, ["red", "green"], threshold=0, nms_iou=1).scores.size
        )
        for wrong, message in (
            ({"a red": 0.5}, "threshold: 'a red' is not among the labels red, green"),
            ({"red": 2}, r"threshold\['red'\]: expected 0 to 1, got 2"),
            (-0.1, "threshold: expected 0 to 1, got -0.1"),
            ("0.5", "threshold: expected 0 to 1, got '0.5'"),
        ):
            with pytest.raises(InputError, match=message):
                labels(wrong)
        for options, message in (
            ({"nms_iou": 1.5}, "nms_iou: expected 0 to 1, got 1.5"),
            ({"max_detections": 0}, "max_detections: expected 1 or more, got 0"),
            ({"labels": "red"}, "labels: expected a list of labels, got the one string 'red'"),
            ({"labels": []}, "labels: expected at least one, got none"),
            ({"labels": ["red", "red"]}, r"labels\[1\]: 'red' is also labels\[0\]"),
            ({"labels": pack_of(["red"]), "templates": ["a {}"]}, "templates: a label pack brings its own"),
            ({"batch_size": 0}, "batch_size: expected 1 or more"),
        ):
            with pytest.raises(InputError, match=message):
                model.detect(picture, **{"labels": ["red"], **options})


def test_thresholds_baked_in(make: Make) -> None:
    assert make(heads=("labels",), thresholds=(0.92, 0.1)).detect(scene(CELLS)).names == ["red", "green"]
    assert (
        make(heads=("labels",), thresholds=(0.92, 0.1)).detect(scene(CELLS), threshold=0.1).names[0] == "red"
    )


def test_the_bundles_own_rules(make: Make) -> None:
    """Scores times objectness, a threshold, and suppression across labels, as the manifest says."""
    picture = scene({(2, 3): RED, (5, 1): GREEN})
    found = make(objectness=True, multiply=True).detect(picture, ["red", "green"])
    assert_found(found, [WANTED[1], ("green", score_of(GREEN, 1, "green") * 128 / 255, WANTED[2][2])])
    assert make(objectness=True).detect(picture, ["green"]).scores[0] == pytest.approx(
        score_of(GREEN, 1, "green")
    )
    strict = make(objectness=True, detection=Detection(threshold=0.5, objectness=True, class_agnostic=True))
    assert strict.detect(picture, ["red", "green"]).names == ["red"]
    both = strict.detect(picture, ["red", "a red cup"])
    assert both.names == ["red"], "of two labels on one box the better stays"
    assert set(strict.detect(picture, ["red", "a red cup"], class_agnostic=False).names) == {
        "red",
        "a red cup",
    }


def test_two_boxes_of_one_label_that_overlap(make: Make) -> None:
    """Neighbours of level 255 have boxes of 12 pixels, 8 apart: an IoU of 1/5."""
    model, picture = make(), scene({(2, 3): RED, (2, 4): RED})
    assert len(model.detect(picture, ["red"], nms_iou=0.19)) == 1
    assert len(model.detect(picture, ["red"], nms_iou=0.21)) == 2
    assert len(model.detect(picture, ["red"], nms_iou=0.21, max_detections=1)) == 1
    best = model.detect(picture, ["red"], nms_iou=0.19)
    assert_found(best, [cell("red", RED, 2, 4)])  # the further right, the larger its scale


@pytest.mark.parametrize("places", [None, 5])
def test_prompts_are_padded_and_masked(places: int | None, make: Make) -> None:
    model, picture = make(heads=("prompts",), places=places), scene(CELLS)
    assert_found(model.detect(picture, ["red", "green"]), WANTED)
    assert_found(model.detect(picture, ["blue", "red", "cyan", "green"]), WANTED)
    assert len(model.detect(picture, ["red"], threshold=0, max_detections=1000, nms_iou=1)) == 64, (
        "no masked prompt is found"
    )
    if places:
        with pytest.raises(InputError, match="labels: expected at most 5, got 6"):
            model.detect(picture, pack_of(["red", "green", "blue", "cyan", "yellow", "white"]))


def test_examples(plain: Bundle, make: Make) -> None:
    picture = scene(CELLS)
    shown = scene({(3, 3): BLUE, (6, 6): GREEN})
    with load(plain, threads=1) as model:
        blue = Example(shown, (24, 24, 32, 32), "that blue")
        found = model.detect(scene({(1, 1): BLUE, (5, 5): RED}), ["red"], examples=[blue])
        assert found.labels == ("red", "that blue")
        assert found.names == ["that blue", "red"] or found.names == ["red", "that blue"]
        np.testing.assert_allclose(found.boxes[found.names.index("that blue")], box_of(1, 1, 255), atol=1e-3)
        # without a box: what has the highest objectness, which is the brightest
        found = model.detect(scene({(1, 1): BLUE}), examples=[Example(shown)])
        assert found.names == ["example 1"]
        mixed = [
            Example(scene({(3, 3): RED}), (24, 24, 32, 32), "x"),
            Example(scene({(3, 3): (0, 255, 0)}), (24, 24, 32, 32), "x"),
        ]
        assert model.detect(scene({(1, 1): (255, 255, 0)}), examples=mixed).names == ["x"], (
            "red and green make yellow"
        )
        pack = model.make_prompts(["red"], examples=[blue])
        assert pack.labels == ("red", "that blue")
        np.testing.assert_allclose(pack.vectors[1] @ vector_of("blue"), 0.99875, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(pack.vectors, axis=1), 1, atol=1e-6)
        assert_found(model.detect(picture, replace(pack, thresholds=(0.5, 0.5))), WANTED[:2])
        with pytest.raises(InputError, match="threshold: 'blue' is not among the labels red, that blue"):
            model.detect(picture, ["red"], examples=[blue], threshold={"blue": 0.1})
        for wrong, message in (
            (Example(shown, (1, 2, 3)), r"examples\[0\].box: expected \(x1, y1, x2, y2\) in pixels"),
            (Example(shown, (9, 9, 4, 10)), r"examples\[0\].box: expected .* x1 < x2"),
            (
                Example(shown, (70, 0, 80, 10)),
                r"examples\[0\].box: expected a box in the picture of 64 x 64 pixels",
            ),
            (Example(shown, label=""), r"examples\[0\].label: expected a text"),
            (Example(b""), r"examples\[0\]: images\[0\]: the file is empty"),
            (Example(shown, label="red"), "examples: 'red' is also a label"),
            (shown, r"examples\[0\]: expected an Example, got ndarray"),
        ):
            with pytest.raises(InputError, match=message):
                model.detect(picture, ["red"], examples=[wrong])
        with pytest.raises(InputError, match="labels: expected some, or examples, got none"):
            model.make_prompts()
    # without objectness: of the whole picture's best boxes the one least like the mean
    assert make().detect(scene({(1, 1): BLUE}), examples=[Example(scene({(3, 3): BLUE}))]).names == [
        "example 1"
    ]
    with pytest.raises(EngineError, match="its detector answers prompts and gives no embeddings of regions"):
        make(heads=("prompts",)).detect(picture, examples=[Example(shown)])


def test_proposals_are_asked_without_the_tower(plain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = scene(CELLS, 64, 64)
    with load(plain, threads=1) as model:
        seen = model.propose(picture)
        assert (seen.boxes.shape, seen.embeddings.shape, seen.size, len(seen)) == (
            (64, 4),
            (64, 4),
            (64, 64),
            64,
        )
        several = model.propose([picture, scene({(1, 1): BLUE})])
        assert [len(one) for one in several] == [64, 64]
        assert len(model.detect(scene({(1, 1): BLUE}), ["blue"])) == 1
        assert_found(
            model.detect_in(seen, ["red", "green"]), WANTED
        )  # kept: later calls did not write over it
        assert_found(model.detect_in(several[0], ["red", "green"]), WANTED)
        monkeypatch.setattr(type(model.towers[4].engine), "submit", lambda *_: pytest.fail("an engine ran"))
        for labels in (["red", "green"], pack_of(["red", "green"])):
            assert_found(model.detect_in(seen, labels), WANTED)
        assert model.detect_in(seen, pack_of(["red"]), threshold=0.95).names == []
        with pytest.raises(InputError, match="expected no prompts within prompts"):
            model.detect_in(seen, "[red [green]]")
        with pytest.raises(InputError, match="labels: expected some, or examples"):
            model.detect_in(seen)
        with pytest.raises(InputError, match=r"proposals: expected those of model dddddd"):
            model.detect_in(replace(seen, model_id="e" * 64), ["red"])


def test_what_a_bundle_cannot_do(make: Make, tmp_path: Path) -> None:
    picture = scene(CELLS)
    with load(toy.make_bundle(tmp_path / "toy"), threads=1) as model:
        for call in (lambda: model.detect(picture, ["cat"]), lambda: model.propose(picture)):
            with pytest.raises(
                EngineError,
                match="this bundle has no detector; it can classify and embed pictures and embed texts",
            ):
                call()
    model = make(heads=("labels",), text=False)
    model.warmup()
    with pytest.raises(EngineError, match="this bundle has no image tower; it can detect"):
        model.classify(picture, pack_of(["red"]))
    with pytest.raises(EngineError, match="its detector knows its baked labels only"):
        model.detect(picture, pack_of(["red"]))
    with pytest.raises(EngineError, match="its detector answers its baked labels and gives no embeddings"):
        model.propose(picture)
    with pytest.raises(InputError, match="templates: baked labels bring their own"):
        model.detect(picture, templates=["a {}"])
    with pytest.raises(InputError, match="has none baked in for its detector"):
        make().detect(picture)
    with pytest.raises(InputError, match="this label pack was made by model 22222"):
        make().detect(picture, replace(pack_of(["red"]), model_id="2" * 64))
    closed = make()
    closed.close()
    for call in (
        lambda: closed.detect(picture, ["red"]),
        lambda: closed.detect_each([picture], ["red"]),
        lambda: closed.propose(picture),
    ):
        with pytest.raises(EngineError, match="this model was closed"):
            call()


def test_a_pack_that_is_not_the_graphs_is_refused(make: Make) -> None:
    bundle = make(heads=("labels",)).bundle
    pack_of(["red"]).save(bundle.path("labels/baked.labels"))
    message = "detector-fp32-labels gives 2 scores, its pack has 1 labels"
    with (
        load(seal(bundle.root, bundle.manifest), threads=1) as model,
        pytest.raises(BundleError, match=message),
    ):
        model.detect(scene(CELLS))


def test_beside_a_classifier_of_another_size(make: Make) -> None:
    model, picture = make(image=True, objectness=True), scene({(2, 3): RED, (2, 4): RED})
    model.warmup()
    assert set(model.info().towers) == {"image", "text", "detector"}
    assert model.classify(picture, ["green", "red"]).label == "red"
    assert model.embed_images(picture).shape == (4,)
    assert_found(model.detect(picture, ["red"]), [cell("red", RED, 2, 4), cell("red", RED, 2, 3)])
    heads_only = make(heads=("prompts", "labels"), image=True)
    heads_only.warmup()
    assert set(heads_only.info().towers) == {"image", "text", "detector-prompts", "detector-labels"}
    assert "detector-prompts: detector-fp32-prompts on onnxruntime-cpu" in str(heads_only.info())


def test_threads_with_different_prompts_do_not_mix(make: Make) -> None:
    model, wrong = make(heads=("prompts",)), list[int]()
    sets = [(["red", "green"], WANTED), (["green"], WANTED[2:]), (["blue", "cyan"], [])]

    def work(i: int) -> None:
        for _ in range(6):
            try:
                assert_found(model.detect(scene(CELLS), sets[i % 3][0]), list(sets[i % 3][1]))
            except AssertionError:
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_the_parts_of_a_call_are_heard(plain: Bundle) -> None:
    with load(plain, threads=1) as model:
        model.warmup()
        with stages.listen() as spans:
            model.detect(scene(CELLS), ["red"])
    assert {"decode", "preprocess", "image tower", "text tower", "head"} <= {name for _, _, name in spans}
