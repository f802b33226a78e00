"""What a query computes: the runtime's own answers, anew each time, and a refusal where a bundle cannot."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeclip import load
from edgeclip.bench.generated import NOUNS
from edgeclip.bench.report import PictureSet
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import TASKS, classify, open_task, search, unit_of
from edgeclip.errors import InputError
from edgeclip.runtime.model import Model
from edgeclip.runtime.prompts import Prompts
from tests.mutants import broken
from tests.runtime.toy import make_bundle, picture
from tests.runtime.toy import text_reference as reference

TEXTS = ("a cat", "a dog", "photo of a bicycle")


@pytest.fixture(scope="module")
def inputs():
    import io

    from PIL import Image

    pictures = []
    for seed in range(4):
        file = io.BytesIO()
        Image.fromarray(picture(seed)).save(file, "PNG")
        pictures.append(file.getvalue())
    return Inputs(tuple(pictures), TEXTS, PictureSet("pictures", 4, 0, 0, ""))


@pytest.fixture
def model(tmp_path):
    with load(make_bundle(tmp_path / "toy"), threads=1) as model:
        yield model


def counted(model, monkeypatch):
    """Texts that reach the tokenizer."""
    seen: list[str] = []
    run = Prompts._run

    def counting(self, texts, numbers):
        seen.extend(texts)
        return run(self, texts, numbers)

    monkeypatch.setattr(Prompts, "_run", counting)
    return seen


def test_classify_gives_labels_and_embeds_no_text_in_a_query(
    model: Model, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = open_task("classify", model, inputs, Settings(labels=("cat", "dog")))
    seen = counted(model, monkeypatch)
    one, several = task.query([2]), task.query([0, 2, 2])
    assert one == model.classify(inputs.pictures[2], ["cat", "dog"])
    assert [result.labels for result in several] == [
        model.classify(inputs.pictures[i], ["cat", "dog"]).labels for i in (0, 2, 2)
    ]
    assert seen == []
    assert (task.unit, task.samples) == ("picture", 4)


def test_classify_without_labels_goes_by_twenty_nouns(model: Model, inputs: Inputs) -> None:
    task = open_task("classify", model, inputs, Settings())
    assert set(task.query([0]).labels) == set(NOUNS)
    assert len(NOUNS) == 20


def test_classify_goes_by_baked_labels_where_there_are_any(inputs: Inputs) -> None:
    class Baked:
        labels = ("cat", "dog")
        asked: list[object] = []  # noqa: RUF012

        class manifest:
            variants = (SimpleNamespace(tower="image", axes=SimpleNamespace(head="labels")),)

        class bundle:
            root = "toy"

        def classify(self, images, labels):
            self.asked.append(labels)

    open_task("classify", Baked(), inputs, Settings()).query([0])
    assert Baked.asked == [None]
    with pytest.raises(
        InputError,
        match=r"needs an image tower that gives embeddings or prompts; .* only image towers that give labels",
    ):
        classify.labels_of(Baked(), Settings(labels=("a", "b")))


def test_embed_gives_vectors(model: Model, inputs: Inputs) -> None:
    task = open_task("embed", model, inputs, Settings())
    np.testing.assert_array_equal(task.query([1]), model.embed_images(inputs.pictures[1]))
    assert task.query([1, 3, 1]).shape == (3, 8)


@pytest.mark.parametrize("name", ["embed-text", "search"])
def test_texts_are_computed_anew_in_every_query_and_twice_in_one(
    model: Model, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model.embed_texts(list(TEXTS))  # known before
    task = open_task(name, model, inputs, Settings(index_size=50))
    seen = counted(model, monkeypatch)
    for samples in ([0], [0], [1, 1, 2]):
        task.query(samples)
    assert seen == [TEXTS[i] for i in (0, 0, 1, 1, 2)]
    assert (task.unit, task.samples) == ("text", 3)


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        (Prompts.embed, "if self._capacity:", "if True:"),  # the same text twice in a call is computed once
        (
            Prompts.keep,
            "self._capacity, self._last = most, None",
            "self._last = None",
        ),  # what an earlier query found is used again
        (Prompts.keep, "> most", "> most + 2"),  # what was known before is
    ],
)
def test_planted_faults_of_texts_kept_are_caught(
    model: Model,
    inputs: Inputs,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[..., Any],
    old: str,
    new: str,
) -> None:
    monkeypatch.setattr(Prompts, function.__name__, broken(function, old, new))
    model.embed_texts(TEXTS[:2])
    task = open_task("embed-text", model, inputs, Settings())
    seen = counted(model, monkeypatch)
    for samples in ([0], [0], [1, 1, 2]):
        task.query(samples)
    assert seen != [TEXTS[i] for i in (0, 0, 1, 1, 2)]


def test_texts_are_kept_again_when_asked(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.keep_texts(0)
    without = model.embed_texts([*TEXTS, TEXTS[0]])
    model.keep_texts(2)
    seen = counted(model, monkeypatch)
    np.testing.assert_allclose(model.embed_texts([*TEXTS, TEXTS[0]]), without, atol=1e-6)
    np.testing.assert_allclose(model.embed_texts(TEXTS[0]), without[0], atol=1e-6)
    assert sorted(seen) == sorted(TEXTS)
    with pytest.raises(InputError, match=r"^keep_texts: expected 0 or more, got -1\.$"):
        model.keep_texts(-1)


def test_embed_text_gives_the_vectors_of_the_text_tower(model: Model, inputs: Inputs) -> None:
    task = open_task("embed-text", model, inputs, Settings())
    for i, text in enumerate(TEXTS):
        ids = model.encode_texts([text]).input_ids
        np.testing.assert_allclose(task.query([i]), reference(ids)[0], atol=1e-6)
    assert task.query([0, 1]).shape == (2, 8)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_search_finds_the_ten_best(model: Model, inputs: Inputs, size: int) -> None:
    task = open_task("search", model, inputs, Settings(index_size=size))
    np.testing.assert_allclose(np.linalg.norm(task.index, axis=1), 1, atol=1e-6)
    rows, scores = task.query([0, 2])
    cosines = np.float64(model.embed_texts([TEXTS[0], TEXTS[2]])) @ np.float64(task.index).T
    expected = np.argsort(-cosines, axis=1)[:, :10]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, expected, 1), atol=1e-6)


def test_one_search_stays_on_its_thread() -> None:
    index = np.random.default_rng(0).random((5000, 192), np.float32)
    search._cosines(index[:1], index)
    cpu, thread = time.process_time_ns(), time.thread_time_ns()
    for _ in range(100):
        found = search._cosines(index[:1], index)
    cpu, thread = time.process_time_ns() - cpu, time.thread_time_ns() - thread
    assert cpu <= 1.2 * thread + 1e6
    np.testing.assert_allclose(found, index[:1] @ index.T, rtol=1e-5)


def test_an_index_is_the_same_for_the_same_seed(model: Model, inputs: Inputs) -> None:
    made = [
        open_task("search", model, inputs, Settings(index_size=20, seed=seed)).index for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(made[0], made[1])
    assert np.abs(made[0] - made[2]).max() > 0.1
    with pytest.raises(InputError, match=r"^index_size: expected 1 or more, got 0\.$"):
        open_task("search", model, inputs, Settings(index_size=0))


@pytest.mark.parametrize(
    ("name", "tower", "there_is"),
    [
        ("embed-text", "a text", {"text": False}),
        ("search", "a text", {"text": False}),
        ("classify", "a text", {"text": False}),
        ("embed", "an image", {"image": False}),
        ("classify", "an image", {"image": False}),
        ("detect", "a detector", {}),
    ],
)
def test_a_bundle_without_the_tower_is_refused(
    tmp_path: Path, inputs: Inputs, name: str, tower: str, there_is: dict[str, bool]
) -> None:
    line = rf"toy: task '{name}' needs {tower} tower that gives embeddings.*; the bundle has none\. Choose another task or bundle\.$"
    with load(make_bundle(tmp_path / "toy", **there_is)) as model, pytest.raises(InputError, match=line):
        open_task(name, model, inputs, Settings())


def test_what_is_no_task_is_refused_with_what_there_is(model: Model, inputs: Inputs) -> None:
    with pytest.raises(
        InputError,
        match=r"^task 'segment': no such task\. Choose one of classify, detect, embed, embed-text, search\.$",
    ):
        open_task("segment", model, inputs, Settings())
    assert {name: unit_of(name) for name in TASKS} == {
        "classify": "picture", "detect": "picture", "embed": "picture", "embed-text": "text", "search": "text"
    }  # fmt: skip
