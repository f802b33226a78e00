"""Record linkage: pooled vectors, links, entities, and what is learnt from labelled ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index import linkage, tuning
from edgeclip.runtime.index.linkage import Linkage, Records, link, link_within, pool, records_of
from edgeclip.runtime.index.tuning import rand_index, spanning_tree, tune_entities, tune_links
from edgeclip.runtime.index.types import Item
from tests.index.groups import Compared, copies, unit
from tests.index.test_components import same_partition, scipy_partition
from tests.mutants import broken
from tests.vectors import clip_like

hierarchy = pytest.importorskip("scipy.cluster.hierarchy")

IMAGES, TEXTS = clip_like(50, 16), clip_like(50, 16, "text")


def records(
    entities: int = 30, times: int = 4, image_noise: float = 0.8, text_noise: float = 0.8, seed: int = 0
) -> Records:
    """Records of known entities, `times` of each, one of them without a text; looks and words are noisy by themselves."""
    images = copies(
        unit(np.random.default_rng(seed).normal(size=(entities, 32))), times, image_noise, seed + 1
    )
    texts = copies(
        unit(np.random.default_rng(seed + 2).normal(size=(entities, 32))), times, text_noise, seed + 3
    )
    has_text = np.arange(len(images)) % times != 3
    texts[~has_text] = images[~has_text]
    items = [Item(f"record {i}") for i in range(len(images))]
    return Records(np.arange(len(images)) * 2, items, images, texts, has_text)


TRIED = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
ENTITIES = np.repeat(np.arange(30), 4)


def test_pooled_vectors_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linkage, "ROWS", 20)
    found = pool(IMAGES, TEXTS, weight=0.636)
    mixed = 0.636 * IMAGES.astype(np.float64) + 0.364 * TEXTS.astype(np.float64)
    np.testing.assert_allclose(found, mixed / np.linalg.norm(mixed, axis=1, keepdims=True), atol=1e-6)


def test_weight_one_is_the_picture_and_nought_the_text() -> None:
    np.testing.assert_allclose(pool(IMAGES, TEXTS, weight=1), IMAGES, atol=1e-6)
    np.testing.assert_allclose(pool(IMAGES, TEXTS, weight=0), TEXTS, atol=1e-6)


@pytest.mark.parametrize("weight", [0, 0.5, 1])
def test_without_a_text_the_picture_stands_alone(weight: float) -> None:
    has_text = np.arange(50) % 2 == 0
    found = pool(IMAGES, TEXTS, has_text, weight=weight)
    assert (found[~has_text] == IMAGES[~has_text]).all()
    np.testing.assert_allclose(found[has_text], pool(IMAGES, TEXTS, weight=weight)[has_text])


def test_a_picture_and_a_text_that_cancel_out_leave_the_picture() -> None:
    assert (pool(IMAGES, -IMAGES, weight=0.5) == IMAGES).all()


def test_each_is_linked_to_the_nearest_that_is_near_enough() -> None:
    left, right = Compared(clip_like(200, 16, seed=1)), Compared(clip_like(300, 16, seed=2), first=1)
    cosines = left.vectors.astype(np.float64) @ right.vectors.T
    found = list(link(left, right, 0.1))
    assert [one.left.id for one in found] == left.ids.tolist()
    for one, row in zip(found, cosines, strict=True):
        if row.max() < 0.9:
            assert one.right is None
            assert one.to_dict() == {"left": one.left.key, "right": None}
        else:
            assert one.right is not None
            assert one.right.id == right.ids[row.argmax()]
            assert one.right.score == pytest.approx(row.max(), abs=1e-6)
    assert 20 < sum(one.right is not None for one in found) < 180


def test_threshold_nought_links_exact_duplicates_only() -> None:
    vectors = clip_like(40, 16)
    left = Compared(np.concatenate([vectors[:3], copies(vectors[3:6], 1, 0.01)]))
    found = [one.right and one.right.key for one in link(left, Compared(vectors), 0)]
    assert found == ["item 0", "item 1", "item 2", None, None, None]
    assert link_within(Compared(np.concatenate([vectors, vectors[:2]])), 0)[1][[40, 41]].tolist() == [0, 1]


def test_entities_are_symmetric_and_transitive() -> None:
    rows = Compared(clip_like(150, 16))
    ids, entities = link_within(rows, 0.1)
    assert same_partition(entities, scipy_partition(rows.vectors, 0.9))
    turned = Compared(rows.vectors[::-1])
    assert same_partition(entities, link_within(turned, 0.1)[1][::-1])
    assert (ids == rows.ids).all()
    first = np.unique(entities, return_index=True)[1]
    assert (np.diff(first) > 0).all()  # numbered in the order of their first record


def test_an_empty_side_links_nothing() -> None:
    none = Compared(np.empty((0, 16)))
    assert list(link(none, Compared(IMAGES), 0.1)) == []
    assert all(one.right is None for one in link(Compared(IMAGES), none, 2))
    assert len(link_within(none, 0.1)[1]) == 0


def test_the_adjusted_rand_index() -> None:
    assert rand_index(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2])) == 1
    random = np.random.default_rng(0)
    one, two = random.integers(0, 5, (2, 60))
    assert rand_index(one, two) == pytest.approx(_by_pairs(one.tolist(), two.tolist()))
    assert rand_index(np.zeros(4), np.zeros(4)) == 1


def _by_pairs(one: list[int], two: list[int]) -> float:
    """Counted pair by pair."""
    pairs = [(i, j) for i in range(len(one)) for j in range(i)]
    a = [one[i] == one[j] for i, j in pairs]
    b = [two[i] == two[j] for i, j in pairs]
    both, chance = sum(x and y for x, y in zip(a, b, strict=True)), sum(a) * sum(b) / len(pairs)
    return (both - chance) / ((sum(a) + sum(b)) / 2 - chance)


def test_the_spanning_tree_is_single_linkage() -> None:
    vectors = clip_like(80, 16)
    distances = spanning_tree(vectors)[2]
    cosines = vectors.astype(np.float64) @ vectors.T
    heights = hierarchy.linkage(np.maximum(1 - cosines[np.triu_indices(80, 1)], 0), "single")[:, 2]
    np.testing.assert_allclose(distances, heights, atol=1e-6)


def test_both_together_find_more_entities_than_either() -> None:
    made = records()
    found = tune_entities(made, ENTITIES.tolist(), TRIED)
    assert 0 < found.linkage.weight < 1
    assert found.score > max(found.picture_alone, found.text_alone) + 0.04
    entities = link_within(made.pooled(found.linkage.weight), found.linkage.threshold)[1]
    assert rand_index(entities, ENTITIES) == pytest.approx(found.score)
    # made anew, by other noise: what was learnt holds
    other = records(seed=50)
    again = link_within(other.pooled(found.linkage.weight), found.linkage.threshold)[1]
    assert rand_index(again, ENTITIES) > found.score - 0.25


@pytest.mark.parametrize(("image_noise", "text_noise", "near"), [(0.2, 3.0, 1.0), (3.0, 0.2, 0.0)])
def test_the_weight_goes_to_what_tells_more(image_noise: float, text_noise: float, near: float) -> None:
    found = tune_entities(records(image_noise=image_noise, text_noise=text_noise), ENTITIES.tolist(), TRIED)
    assert abs(found.linkage.weight - near) <= 0.5
    assert found.score > 0.5


def test_links_are_tuned_by_f1() -> None:
    made = records(60, 2, 1.2, 1.2)
    reference = made.take(np.arange(0, 90, 2))  # the first of 45 entities; 15 have no match
    asking = made.take(np.arange(1, 120, 2))
    matches = [i if i < 45 else -1 for i in range(60)]
    found = tune_links(asking, reference, matches)
    linked = [
        one.right and one.right.key
        for one in link(
            asking.pooled(found.linkage.weight),
            reference.pooled(found.linkage.weight),
            found.linkage.threshold,
        )
    ]
    right = sum(key == f"record {2 * i}" for i, key in enumerate(linked[:45]))
    made_links = sum(key is not None for key in linked)
    assert found.score == pytest.approx(2 * right / (made_links + 45))
    assert found.score > max(found.picture_alone, found.text_alone)


def test_nothing_to_learn_from_is_refused() -> None:
    made = records(3, 2)
    with pytest.raises(InputError, match="none of the labelled records has a match"):
        tune_links(made, made, [-1] * 6)
    for entities in ([0, 1, 2, 3, 4, 5], [0] * 6):
        with pytest.raises(InputError, match="two entities or more, of which some come twice"):
            tune_entities(made, entities)


def test_records_of_an_index_pool_in_their_texts() -> None:
    rows = Compared(IMAGES[:4], [{"ocr": "a cat"}, {"ocr": " "}, {}, {"ocr": None}])
    asked: list[list[str]] = []

    class Model:
        def embed_texts(self, texts: list[str]) -> np.ndarray:
            asked.append(texts)
            return TEXTS[: len(texts)]

    found = records_of(rows, Model(), 0.5, "ocr")  # type: ignore[arg-type]
    (batch,) = found.batches()
    assert asked == [["a cat"]]
    np.testing.assert_allclose(batch[1][0], pool(IMAGES[:1], TEXTS[:1], weight=0.5)[0])
    assert (batch[1][1:] == IMAGES[1:4]).all()
    assert records_of(rows, None, 1) is rows
    with pytest.raises(InputError, match=r"weight 0.5: to pool in the texts takes the model"):
        records_of(rows, None, 0.5)
    with pytest.raises(InputError, match=r"text field 'caption': no record has it. They have ocr."):
        records_of(rows, Model(), 0.5)  # type: ignore[arg-type]


def test_what_was_learnt_is_kept(tmp_path: Path) -> None:
    place = tmp_path / "a.linkage.json"
    made = Linkage(0.65, 0.125, "ocr", "1" * 64)
    made.save(place)
    assert Linkage.open(place, "1" * 64) == made
    with pytest.raises(
        InputError, match=r"was tuned for model 111111111111..., the index is of 222222222222"
    ):
        Linkage.open(place, "2" * 64)
    for content in (
        "",
        "[]",
        "{}",
        place.read_text().replace("0.65", '"much"'),
        place.read_text().replace("edgeclip.", ""),
    ):
        place.write_text(content)
        with pytest.raises(InputError, match=r"a.linkage.json: cannot be read"):
            Linkage.open(place, "1" * 64)


def test_out_of_range_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"weight: expected 0 \(the text alone\) to 1 \(the picture alone\), got 1.5"
    ):
        pool(IMAGES, TEXTS, weight=1.5)
    with pytest.raises(InputError, match=r"threshold: expected a distance, 0 to 2 \(1 - cosine\), got -1"):
        list(link(Compared(IMAGES), Compared(IMAGES), -1))
    with pytest.raises(
        InputError, match=r"pool: expected both \(N, D\), got images \(50, 16\) and texts \(49, 16\)"
    ):
        pool(IMAGES, TEXTS[1:], weight=0.5)


@pytest.mark.parametrize(
    ("module", "name", "old", "new"),
    [
        (
            linkage,
            "pool",
            "weight * images[part].astype(np.float64) + (1 - weight)",
            "(1 - weight) * images[part].astype(np.float64) + weight",
        ),
        (tuning, "spanning_tree", "np.maximum(1 - ", "np.maximum(1 + "),
        (
            tuning,
            "_between",
            "last + 1 < len(distances)",
            "last + 1 < 0",
        ),  # a threshold on the last link itself
    ],
)
def test_planted_faults_are_seen(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, old: str, new: str
) -> None:
    made = records(image_noise=0.4, text_noise=1.0)
    good = tune_entities(made, ENTITIES.tolist(), TRIED)
    monkeypatch.setattr(module, name, broken(getattr(module, name), old, new))
    assert tune_entities(made, ENTITIES.tolist(), TRIED) != good
