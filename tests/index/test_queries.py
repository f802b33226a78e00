"""Composed questions: by arithmetic on planted vectors, and by what the embedded model finds among drawn pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip import EngineError, InputError, Model
from edgeclip.runtime.index import queries
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.memory import Memory
from edgeclip.runtime.index.queries import Query, compose, compose_for
from edgeclip.runtime.index.types import Item, Origin
from tests.mutants import broken
from tests.runtime.toy import picture
from tests.vectors import clip_like

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
X, Y, Z = np.eye(3, dtype=np.float32)


WORDS = {"x": X, "y": Y, "z": Z}


class Planted:
    """A model whose texts and pictures are known."""

    def embed_texts(self, texts: list[str]) -> Any:
        return np.stack([WORDS[text] for text in texts])

    def embed_images(self, images: list[str]) -> Any:
        return np.stack([WORDS[Path(image).stem] for image in images])


def ask(**parts: Any) -> list[float]:
    found = compose(Planted(), Query(**parts))  # type: ignore[arg-type]
    assert found.dtype == np.float32
    return [round(float(x), 6) for x in found]


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ({"texts": "x"}, X),
        ({"texts": ["x", "y"]}, (1, 1, 0)),
        ({"texts": [("x", 2), "y"]}, (2, 1, 0)),
        ({"texts": "x", "images": "y.png"}, (1, 0.7, 0)),
        ({"texts": "x", "images": ["y.png", ("z.png", 0.2)], "image_weight": 0.5}, (1, 0.5, 0.2)),
        ({"texts": "x", "not_texts": ["z"]}, (1, 0, -0.5)),
        ({"texts": "x", "not_texts": [("z", 0.25)], "not_images": "y.png"}, (1, -0.35, -0.25)),
        ({"images": "z.png", "not_images": [("y.png", 1)], "image_weight": 1}, (0, -1, 1)),
        ({"images": "z.png", "texts": ["x"], "text_weight": 0}, Z),  # w = 0: the picture alone
        ({"images": "z.png", "texts": ["x"], "not_texts": ["x"], "negative_weight": 1}, Z),  # + t - t: likewise
        ({"not_texts": "x"}, (-1, 0, 0)),
        ({"images": [Y * 7], "texts": "x"}, (1, 0.7, 0)),  # a vector, of any length
        ({"images": (X, 0.5), "texts": "y", "image_weight": 9}, (0.5, 1, 0)),
    ],
)  # fmt: skip
def test_worked_by_hand(parts: dict[str, Any], wanted: Any) -> None:
    row = np.array(wanted, np.float64)
    np.testing.assert_allclose(ask(**parts), row / np.linalg.norm(row), atol=1e-6)


def test_order_of_terms_changes_nothing() -> None:
    rows = list(clip_like(6, 64))
    one = compose(None, Query(images=[(row, i) for i, row in enumerate(rows, 1)], not_images=rows[:2]))
    back = [(row, i) for i, row in enumerate(rows, 1)][::-1]
    other = compose(None, Query(images=back, not_images=rows[1::-1]))
    np.testing.assert_allclose(one, other, atol=1e-7)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-6)


def test_centring_takes_the_gap_off() -> None:
    """By numpy's own arithmetic; and texts whose kind lies far away then sort mixed stores by content."""
    means = {"text": np.array([0, 0, 0.9]), "image": np.array([0.2, 0, 0])}
    found = compose(Planted(), Query("x", "y.png", centre=True), means=means)  # type: ignore[arg-type]
    text, image = X - means["text"], Y - means["image"]
    row = text / np.linalg.norm(text) + 0.7 * image / np.linalg.norm(image)
    np.testing.assert_allclose(found, row / np.linalg.norm(row), atol=1e-6)
    with pytest.raises(InputError, match=r"no mean of kind 'text' is known.*Fit codecs"):
        compose(Planted(), Query("x", centre=True), means={"image": means["image"]})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="centring needs the model"):
        compose(None, Query(images=X, centre=True))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "query: expected a text or a picture, got neither"),
        ({"texts": [3]}, r"texts\[0\]: expected a text, got int"),
        ({"texts": "x", "not_images": [3]}, r"not_images\[0\]: expected a picture .* got int"),
        ({"texts": ("x", -1)}, "texts: expected a weight of 0 or more, got -1"),
        ({"texts": [("x", 1, 2)]}, r"texts\[0\]: expected a term or \(term, weight\)"),
        ({"texts": "x", "negative_weight": float("nan")}, "negative_weight: expected a weight of 0 or more, got nan"),
        ({"images": np.zeros(3, np.float32)}, "images: expected a vector of finite length above 0"),
        ({"images": [X, np.ones(4, np.float32)]}, "vectors of widths 3, 4; expected one width"),
        ({"texts": "x", "not_texts": "x", "negative_weight": 1}, "its terms cancel out.*Change a weight"),
        ({"texts": "x", "not_texts": "x", "negative_weight": 1.0001}, "its terms cancel out"),
        ({"texts": "x", "text_weight": 0}, "its terms cancel out"),
    ],
)  # fmt: skip
def test_refused_in_one_line(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        ask(**parts)
    assert "\n" not in str(caught.value)


def test_a_text_needs_the_model() -> None:
    with pytest.raises(InputError, match="'x' needs the model"):
        compose(None, Query("x"))


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("-self.negative_weight * self.text_weight", "self.negative_weight * self.text_weight", {"not_texts": "y"}),
        ("sign * term[1]", "term[1]", {"not_texts": ("y", 0.3)}),
        ("-self.negative_weight * self.image_weight", "-self.negative_weight", {"not_images": "y.png"}),
    ],
)  # fmt: skip
def test_planted_faults_are_seen(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, parts: dict[str, Any]
) -> None:
    good = ask(texts="x", **parts)
    monkeypatch.setattr(Query, "parts", broken(Query.parts, old, new))
    assert ask(texts="x", **parts) != good


@pytest.fixture(scope="module")
def nano() -> Iterator[Model]:
    with edgeclip.load("nano", threads=1) as model:
        yield model


KINDS = {
    "fruit": ("apple", "bananas", "strawberry"),
    "vehicle": ("bicycle", "car", "train"),
    "animal": ("butterfly", "cat", "poodle"),
    "flag": ("flag-algeria", "flag-new-zealand"),
    "instrument": ("guitar", "violin"),
}


@pytest.fixture(scope="module")
def drawn(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """An index of the pictures of examples/pictures, which says of some what kind of thing they show."""
    paths = sorted(PICTURES.glob("*.png"))
    if not paths:
        pytest.skip(f"needs the pictures in {PICTURES}")
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    items = [Item(path.stem, {"path": str(path), "kind": kinds.get(path.stem, "other")}) for path in paths]
    with Index.create(tmp_path_factory.mktemp("drawn") / "x.index", nano) as index:
        index.add_images(paths, items)
        yield index


@pytest.mark.parametrize(
    ("parts", "options", "best"),
    [
        ({"texts": "fruit"}, {}, {"apple", "strawberry", "bananas"}),
        ({"texts": "fruit", "not_texts": "apple"}, {}, {"bananas"}),
        ({"texts": "a flag"}, {"threshold": 0.45}, {"flag-algeria", "flag-new-zealand"}),
        ({"texts": "a flag", "not_texts": "Algeria"}, {}, {"flag-new-zealand"}),
        ({"texts": "a flag", "not_texts": "Algeria"}, {"threshold": 0.4}, {"flag-new-zealand"}),
        ({"texts": "vehicle"}, {}, {"train", "car"}),
        ({"texts": "vehicle", "not_texts": "car"}, {}, {"train"}),
        ({"texts": "something red"}, {"where": "kind == 'vehicle'"}, {"car"}),
        ({"texts": "a red fruit", "not_texts": "apple"}, {"where": "kind == 'fruit' and key != 'apple'"}, {"strawberry"}),
        ({"texts": "animal"}, {"where": {"kind": "animal"}}, {"cat", "poodle", "butterfly"}),
        ({"texts": "animal"}, {"where": "kind in ('vehicle', 'animal')", "threshold": 0.3}, {"cat", "poodle", "butterfly"}),
        ({"images": "violin", "texts": "guitar"}, {}, {"guitar"}),
        ({"images": "train", "texts": "car", "not_texts": "train"}, {}, {"car"}),
        ({"images": "flag-algeria", "texts": "New Zealand", "not_texts": "Algeria"}, {}, {"flag-new-zealand"}),
        ({"images": ["apple", "bananas"], "texts": "fruit"}, {}, {"strawberry"}),
    ],
)  # fmt: skip
def test_what_nano_finds(
    nano: Model, drawn: Index, parts: dict[str, Any], options: dict[str, Any], best: set[str]
) -> None:
    """Right answers written by hand, among 26 drawings; a picture in the question is no answer."""
    given = parts.get("images", [])
    own = [given] if isinstance(given, str) else given
    query = Query(**{**parts, "images": list(drawn.vectors(own))})
    hits = drawn.search(compose(nano, query), 26, **options)
    ranked = [hit.key for hit in hits if hit.key not in own]
    assert set(ranked[: len(best)]) == best, ranked[:5]
    if options:
        assert len(ranked) == len(best) or "threshold" not in options


def test_pictures_and_texts_as_the_model_embeds_them(nano: Model) -> None:
    wanted = nano.embed_texts("a cat") + 0.7 * nano.embed_images(picture(1))
    found = compose(nano, Query("a cat", picture(1)))
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), atol=1e-5)
    with pytest.raises(EngineError, match="no codecs"):
        compose(nano, Query("a cat", centre=True))
    assert queries.LEAST < 0.01


def mixed(count: int = 300) -> tuple[Memory, Any, Any]:
    """Pictures and their captions, each kind with a mean of its own, in one store: rows i and count + i belong together."""
    random = np.random.default_rng(0)
    gap = np.array([[4.0], [-4.0]]) * np.eye(1, 32)
    meant = random.normal(size=(count, 32))
    rows = [meant + gap[kind] + 0.3 * random.normal(size=(count, 32)) for kind in (0, 1)]
    images, texts = (row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows)
    items = [Item(f"{i}.png", {"path": f"{i}.png"}) for i in range(count)]
    items += [Item(f"c{i}", {"caption": f"caption {i}"}) for i in range(count)]
    return Memory(np.concatenate([images, texts]).astype(np.float32), items), images, texts


def test_means_of_what_is_stored() -> None:
    store, images, texts = mixed()
    means = queries.stored_means(store)
    np.testing.assert_allclose(means["image"], images.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(means["text"], texts.mean(axis=0), atol=1e-6)
    few = Memory(images[:70].astype(np.float32), [Item(str(i), {"caption": "x"} if i < 9 else {}) for i in range(70)])  # fmt: skip
    assert queries.stored_means(few) == {}
    assert queries.stored_means(Memory(np.empty((0, 4), np.float32), [])) == {}


def test_centred_questions_find_the_other_kind() -> None:
    """A picture's caption among pictures and captions: beyond the gap without centring."""
    store, images, _ = mixed()
    found = dict.fromkeys((False, True), 0)
    for centre in found:
        for i in range(40):
            asked = compose_for(store, None, Query(images=images[i].astype(np.float32), centre=centre))
            found[centre] += f"c{i}" in [hit.key for hit in store.search(asked, 3)]
    assert found[False] <= 4
    assert found[True] >= 36


def test_an_index_asks_by_vectors_without_a_model(tmp_path: Path) -> None:
    with Index.create(tmp_path / "x.index", Origin("1" * 64, "planted", 3)) as index:
        index.add(np.stack([X, Y, Z]), ["x", "y", "z"])
        hits = index.search(Query(images=[X, (Y, 0.2)], not_images=Z))
        assert [hit.key for hit in hits] == ["x", "y", "z"]
        with pytest.raises(InputError, match="'x' needs the model"):
            index.search(Query("x"))
