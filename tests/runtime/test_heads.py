"""Models whose bundle has heads: the same answers as by embeddings, without the towers that are not needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip.bundle import Bundle, seal
from edgeclip.errors import BundleError, EngineError, InputError
from edgeclip.export.bake import bake
from edgeclip.runtime import heads, towers
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.model import load
from edgeclip.runtime.results import Classification
from tests.mutants import broken
from tests.runtime.toy import make_bundle, picture

LABELS = ["cat", "dog", "bicycle", "a photo of a dog"]
PICTURES = [picture(seed) for seed in range(7)]
Make = Callable[..., Bundle]
SOFTMAX = pytest.mark.parametrize("plain", ["softmax"], indirect=True)  # where both would show the same


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle, whose answers are the wanted ones."""
    folder = tmp_path_factory.mktemp(request.param)
    bias = -2.0 if request.param == "sigmoid" else 0.0
    return make_bundle(folder / "toy", activation=request.param, logit_bias=bias)


@pytest.fixture
def make(plain: Bundle, tmp_path: Path) -> Make:
    """Bakes LABELS into the toy bundle."""

    def call(thresholds: list[float] | None = None, **options: Any) -> Bundle:
        with load(plain, threads=1) as model:
            pack = model.make_labels(LABELS)
        pack = pack if thresholds is None else pack.with_thresholds(thresholds)
        return bake(plain, tmp_path / "baked", pack, **options).bundle

    return call


def wanted(plain: Bundle, labels: Any = LABELS, **options: Any) -> list[Classification]:
    with load(plain, threads=1) as model:
        return model.classify(PICTURES, labels, **options)


def assert_same(found: list[Classification], want: list[Classification]) -> None:
    assert [(r.label, r.label_index, r.labels) for r in found] == [
        (r.label, r.label_index, r.labels) for r in want
    ]
    np.testing.assert_allclose([r.scores for r in found], [r.scores for r in want], rtol=0, atol=1e-6)
    assert len({r.scores for r in found}) > 1, "pictures must differ"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_baked_labels_answer_as_given_ones_do(plain: Bundle, make: Make, batch_size: int) -> None:
    with load(make(), threads=2) as model:
        assert model.labels == tuple(LABELS)
        assert_same(model.classify(PICTURES, batch_size=batch_size), wanted(plain))
        assert_same(model.classify(PICTURES, top_k=2), wanted(plain, top_k=2))
        assert model.classify(PICTURES[1]) == model.classify(PICTURES)[1]
        each = list(model.classify_each([PICTURES[0], b"", PICTURES[2]]))
        assert isinstance(each[1], InputError)
        assert [each[0], each[2]] == [model.classify(PICTURES)[i] for i in (0, 2)]
        assert set(model.info().towers) == {"labels"}, "neither the plain tower nor the text tower was opened"
        assert "labels: image-fp32-labels on onnxruntime-cpu" in str(model.info())
        assert_same(model.classify(PICTURES, LABELS), wanted(plain))
        assert set(model.info().towers) == {"image", "labels", "text"}


def test_thresholds_of_the_pack_hold_unless_others_are_asked_for(plain: Bundle, make: Make) -> None:
    best = [r.score for r in wanted(plain)]
    middle = float(np.median(best)) + 1e-5
    with load(make([middle] * 4), threads=1) as model:
        found = model.classify(PICTURES)
        assert_same(found, wanted(plain, threshold=middle))
        assert {r.label for r in found} > {None}
        assert None not in {r.label for r in model.classify(PICTURES, threshold=0)}


@pytest.mark.parametrize("places", [None, 6])
def test_labels_at_run_time_without_the_plain_tower(plain: Bundle, make: Make, places: int | None) -> None:
    bundle = make(only_heads=True, places=places)
    with load(bundle, threads=2) as model:
        for labels in (LABELS, ["dog", "cat"], ["bicycle", "cat", "dog", "a cat", "a dog"]):
            assert_same(model.classify(PICTURES, labels, batch_size=3), wanted(plain, labels))
        templates = ["a {}", "photo of {}"]
        assert_same(model.classify(PICTURES, LABELS, templates), wanted(plain, LABELS, templates=templates))
        pack = model.make_labels(["dog", "cat"]).with_thresholds([0.9, 0.9])
        assert_same(model.classify(PICTURES, pack), wanted(plain, pack))
        assert_same(model.classify(PICTURES), wanted(plain))
        assert set(model.info().towers) == {"prompts", "labels", "text"}
        if places:
            with pytest.raises(
                InputError, match=r"labels: expected at most 6, got 7: this bundle was baked with --open 6"
            ):
                model.classify(PICTURES, [f"label {i}" for i in range(7)])


@SOFTMAX
def test_threads_with_different_labels_do_not_mix(plain: Bundle, make: Make) -> None:
    sets = [LABELS, ["dog", "cat", "bicycle", "a cat"], ["dog", "cat"]]
    want = [wanted(plain, labels) for labels in sets]
    wrong: list[int] = []
    with load(make(only_heads=True), threads=1) as model:

        def work(i: int) -> None:
            for _ in range(10):
                try:
                    assert_same(model.classify(PICTURES, sets[i % 3], batch_size=3), want[i % 3])
                except AssertionError:
                    wrong.append(i)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert wrong == []


def test_what_a_bundle_of_heads_cannot_do(plain: Bundle, make: Make) -> None:
    with load(make(only_heads=True, prompts=False, drop_text=True), threads=1) as model:
        model.warmup()
        assert set(model.info().towers) == {"labels"}
        with pytest.raises(EngineError, match="no image tower that gives embeddings, only labels"):
            model.embed_images(PICTURES)
        with pytest.raises(EngineError, match="has no text tower"):
            model.classify(PICTURES, ["cat", "dog"])
        assert model.classify(PICTURES[0]).labels
        pack = LabelPack(("x",), ("{}",), np.eye(8, dtype=np.float32)[:1], "1" * 64)
        with pytest.raises(
            EngineError, match=r"knows its 4 baked labels only\. Pass no labels, or bake it with the head"
        ):
            model.classify(PICTURES, pack)
        with pytest.raises(InputError, match="templates: baked labels bring their own; drop them"):
            model.classify(PICTURES, templates=["a {}"])
    with load(plain) as model:
        assert model.labels == ()
        with pytest.raises(InputError, match=r"has none baked in\. Pass labels, or a label pack"):
            model.classify(PICTURES)


@SOFTMAX
def test_warming_up_opens_every_head(make: Make) -> None:
    with load(make(only_heads=True), threads=1) as model:
        model.warmup(text=False)
        assert set(model.info().towers) == {"labels", "prompts"}


@SOFTMAX
def test_one_of_several_variants(plain: Bundle, make: Make) -> None:
    with load(make(), threads=1, variants=["image-fp32-labels"]) as model:
        assert_same(model.classify(PICTURES), wanted(plain))


@SOFTMAX
def test_a_pack_that_is_not_the_graphs_is_refused(make: Make) -> None:
    bundle = make()
    file = bundle.path(bundle.manifest.variants_of("image", "labels")[0].labels)
    pack = LabelPack.open(file)
    for spoiled, kind, message in (
        (
            replace(pack, labels=pack.labels[:3], vectors=pack.vectors[:3]),
            BundleError,
            "gives 4 scores, its pack has 3 labels",
        ),
        (replace(pack, model_id="2" * 64), InputError, "this label pack was made by model 22222"),
    ):
        spoiled.save(file)
        with load(seal(bundle.root, bundle.manifest), threads=1) as model, pytest.raises(kind, match=message):
            model.classify(PICTURES)


@SOFTMAX
def test_baked_labels_need_no_tokenizer(make: Make, tmp_path: Path) -> None:
    from tests.house.test_imports import loaded_by

    bundle = make(only_heads=True, drop_text=True)
    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    code = """
import sys
import edgeclip
with edgeclip.load(sys.argv[1]) as model:
    assert model.classify(sys.argv[2]).label
"""
    found = loaded_by(code, str(bundle.root), str(tmp_path / "a.png"))
    assert found == {"numpy", "onnxruntime", "PIL", "safetensors"}


@SOFTMAX
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("prompt_inputs", "rows[0, :count] = vectors", "rows[0, :count] = vectors[::-1]"),
        ("_by_prompts", "row[:count]", "row[-count:]"),
        ("_activate", "logits[None], 1.0", "logits[None], 1.01"),
    ],
)
def test_planted_faults_change_answers(
    name: str, old: str, new: str, plain: Bundle, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = heads.Heads if hasattr(heads.Heads, name) else heads
    monkeypatch.setattr(place, name, broken(getattr(place, name), old, new))
    with load(make(only_heads=True, places=6), threads=1) as model, pytest.raises(AssertionError):
        assert_same(model.classify(PICTURES, LABELS), wanted(plain))


@SOFTMAX
def test_no_call_but_the_first_looks_for_engines(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(make(only_heads=True), threads=1) as model:
        first = model.classify(PICTURES[0], ["cat", "dog"])
        model.classify(PICTURES[0])
        monkeypatch.setattr(towers, "local_variants", lambda *_: pytest.fail("looked on the disk"))
        assert model.classify(PICTURES[0], ["cat", "dog"]).scores == first.scores
        assert model.classify(PICTURES[0]).labels
