"""Classification without labels: the words of captions, the scores of the paper, and pictures named by nano."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgeclip
from edgeclip.errors import InputError
from edgeclip.runtime.index import vocabulary_free
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.types import Origin
from edgeclip.runtime.index.vocabulary_free import classify_freely, classify_freely_each, free_scores
from edgeclip.runtime.index.words import candidates, singular, words_of
from edgeclip.runtime.model import Model
from tests.mutants import broken
from tests.vectors import clip_like

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
CAPTIONS = [
    "a photo of a cat", "a sleeping cat", "two cats on a sofa", "the cat and the dog", "a red bicycle", "bicycles in the street",
    "an old bicycle", "a house with a tree", "two houses by the sea", "my house", "an umbrella in the rain", "umbrellas",
    "a yellow umbrella", "a guitar", "acoustic guitar on a stand", "red guitar",
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with edgeclip.load("nano") as opened:
        yield opened


@pytest.fixture(scope="module")
def captions(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with Index.create(tmp_path_factory.mktemp("words") / "words.index", model) as index:
        index.add(
            model.embed_texts(CAPTIONS), [{"key": f"{i}", "caption": text} for i, text in enumerate(CAPTIONS)]
        )
        yield index


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A photo of two Cats", ["two", "cat"]),
        ("<person> at the beach", ["the", "beach"]),
        ("see https://example.org/cat.html or www.example.org/dog", ["see"]),
        ("IMG_2041.jpg sunset-over-the-sea.PNG", ["img", "sunset", "over", "the", "sea"]),
        ("the dog's ball, the cats' bowls & 3d b2b 42", ["the", "dog", "ball", "the", "cat", "bowl"]),
        ("stock photos, vector icons, logo", ["vector"]),
        ("ladies, boxes, churches, buses, children, glass, cactus", ["lady", "box", "church", "bus", "child", "glass", "cactus"]),
        ("Ärzte und Bäume", ["ärzte", "und", "bäume"]),
        ("", []),
    ],
)  # fmt: skip
def test_words_of_a_caption(caption: str, words: list[str]) -> None:
    assert words_of(caption) == words


@pytest.mark.parametrize(
    ("plural", "one"),
    [("dogs", "dog"), ("foxes", "fox"), ("dishes", "dish"), ("dresses", "dress"), ("cities", "city"), ("pies", "pie"), ("houses", "house"),
     ("roses", "rose"), ("leaves", "leaf"), ("people", "person"), ("sheep", "sheep"), ("bus", "bus"), ("tennis", "tennis"), ("glasses", "glasses"),
     ("shoes", "shoe"), ("tomatoes", "tomato"), ("cookies", "cookie"), ("gas", "gas"), ("eyes", "eye"), ("toys", "toy")],
)  # fmt: skip
def test_singular(plural: str, one: str) -> None:
    assert singular(plural) == one


def test_words_that_come_twice_are_candidates() -> None:
    assert candidates(["a cat on a mat", "two cats", "the dog and the ball", "that dog"]) == ["cat", "dog"]


def test_where_none_comes_twice_the_most_frequent_are() -> None:
    assert candidates(["the cat", "the dog"]) == ["cat", "dog"]  # by name where equally often


@pytest.mark.parametrize("captions", [[], [""], ["the", "with the"], ["a photo", "image"], ["42", "<b>"]])
def test_captions_that_name_nothing_leave_object(captions: list[str]) -> None:
    assert candidates(captions) == ["object"]


def test_a_tagger_says_which_words_stay() -> None:
    texts = ["the big dog runs", "the big dog", "the dog runs"]
    assert candidates(texts) == ["dog", "big", "run"]
    assert candidates(texts, {"dog", "big"}.__contains__) == ["dog", "big"]
    assert candidates(texts, lambda word: False) == ["object"]
    # as published it comes after counting: "the" comes twice, and pushes out what comes once
    assert candidates(["the cat", "the dog"], {"cat", "dog"}.__contains__) == ["object"]


def test_the_order_of_captions_changes_nothing() -> None:
    random = np.random.default_rng(0)
    first = candidates(CAPTIONS)
    for _ in range(5):
        assert candidates([CAPTIONS[i] for i in random.permutation(len(CAPTIONS))]) == first


def test_scores_are_the_papers() -> None:
    image, near, words = clip_like(1, 16)[0], clip_like(10, 16, "text"), clip_like(6, 16, "text", seed=2)
    found = free_scores(image, near, words, alpha=0.7, scale=20)

    def softmax(x: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(x) / np.exp(x).sum())

    mean = near.astype(np.float64).mean(axis=0)
    mean /= np.linalg.norm(mean)
    expected = 0.7 * softmax(20 * words.astype(np.float64) @ image) + 0.3 * softmax(
        20 * words.astype(np.float64) @ mean
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.sum() == pytest.approx(1)


def test_alpha_one_is_zero_shot_over_the_candidates(model: Model, captions: Index) -> None:
    picture = PICTURES / "cat.png"
    found = classify_freely(model, picture, captions, alpha=1)
    names = sorted(found.labels, key=lambda name: found.label_indices[found.labels.index(name)])
    zero_shot = model.classify(picture, names, templates=["{}"])
    assert found.labels == zero_shot.labels
    np.testing.assert_allclose(found.scores, zero_shot.scores, atol=1e-5)


def test_one_candidate_has_score_one(model: Model, captions: Index) -> None:
    found = classify_freely(model, PICTURES / "cat.png", captions, tagger=lambda word: word == "cat")
    assert found.ranked() == [("cat", 1)]
    nothing = classify_freely(model, PICTURES / "cat.png", captions, tagger=lambda word: False)
    assert nothing.ranked() == [("object", 1)]


def test_permuting_the_index_changes_nothing(model: Model, captions: Index, tmp_path: Path) -> None:
    turned = CAPTIONS[::-1]
    with Index.create(tmp_path / "turned.index", model) as other:
        other.add(model.embed_texts(turned), turned)  # captions as keys
        for name in ("cat", "tree", "umbrella"):
            one, two = (
                classify_freely(model, PICTURES / f"{name}.png", index) for index in (captions, other)
            )
            assert one.labels == two.labels
            np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)


def test_pictures_are_named(model: Model, captions: Index) -> None:
    names = ["cat", "bicycle", "umbrella"]
    found = classify_freely(model, [PICTURES / f"{name}.png" for name in names], captions, nearest=3, top_k=2)
    assert [one.label for one in found] == names
    assert all(len(one.labels) <= 2 for one in found)


def test_a_vocabulary_needs_no_text_tower(
    model: Model, captions: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = model.make_labels(["bicycle", "cat", "dog", "zebra"], ["{}"])
    free = classify_freely(
        model, PICTURES / "cat.png", captions, tagger=lambda word: word in ("cat", "dog", "bicycle")
    )
    monkeypatch.setattr(Model, "make_labels", None)
    found = classify_freely(model, PICTURES / "cat.png", captions, vocabulary=pack)
    assert (found.label, set(found.labels)) == (free.label, set(free.labels))
    none = model_pack(pack, ["zebra"])
    assert classify_freely(model, PICTURES / "cat.png", captions, vocabulary=none).labels == ("zebra",)


def model_pack(pack: edgeclip.LabelPack, labels: list[str]) -> edgeclip.LabelPack:
    """Some labels of a pack."""
    rows = [pack.labels.index(label) for label in labels]
    return edgeclip.LabelPack(tuple(labels), pack.templates, pack.vectors[rows], pack.model_id)


def test_one_bad_picture_is_told_in_its_place(model: Model, captions: Index, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pictures = [PICTURES / "cat.png", tmp_path / "bad.png", PICTURES / "umbrella.png"]
    found = list(classify_freely_each(model, pictures, captions, nearest=3))
    assert isinstance(found[1], InputError)
    assert [one.label for one in found[::2] if not isinstance(one, InputError)] == ["cat", "umbrella"]
    with pytest.raises(InputError, match=r"bad\.png"):
        classify_freely(model, pictures, captions)


def test_refusals(model: Model, captions: Index, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected nearest >= 1 and alpha 0 to 1, got 0 and 0.7"):
        classify_freely(model, PICTURES / "cat.png", captions, nearest=0)
    with pytest.raises(InputError, match=r"alpha 0 to 1, got 10 and 1\.5"):
        classify_freely(model, PICTURES / "cat.png", captions, alpha=1.5)
    with (
        Index.create(tmp_path / "empty.index", model) as empty,
        pytest.raises(InputError, match=r"holds no captions. Build it from texts"),
    ):
        classify_freely(model, PICTURES / "cat.png", empty)
    with Index.create(tmp_path / "pictures.index", model) as pictures:
        pictures.add_images([PICTURES / "cat.png"])
        with pytest.raises(InputError, match=r"holds pictures without captions, such as .*cat\.png"):
            classify_freely(model, PICTURES / "cat.png", pictures)
    origin = Origin("2" * 64, "another", 192)
    with (
        Index.create(tmp_path / "other.index", origin) as other,
        pytest.raises(InputError, match=r"holds vectors of another"),
    ):
        classify_freely(model, PICTURES / "cat.png", other)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("alpha * own + (1 - alpha) * theirs", "(1 - alpha) * own + alpha * theirs"),
        ("mean /= max(float(np.linalg.norm(mean)), 1e-12)", "mean /= 1"),
        ("scale, 0, ", "1, 0, "),
    ],
)
def test_planted_faults_are_seen(old: str, new: str) -> None:
    arguments = clip_like(1, 16)[0], clip_like(10, 16, "text"), clip_like(6, 16, "text", seed=2)
    good = free_scores(*arguments, alpha=0.7, scale=20)
    bad = broken(vocabulary_free.free_scores, old, new)(*arguments, alpha=0.7, scale=20)
    assert np.abs(good - bad).max() > 1e-4
