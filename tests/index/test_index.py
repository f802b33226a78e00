"""An index as a program uses it: what it finds is what numpy finds, whatever was added, replaced, removed, flushed or merged before."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import edgeclip
from edgeclip import Index, IndexSettings, InputError, Item, Model, Origin
from tests.runtime.toy import make_bundle, picture
from tests.vectors import clip_like

DIM = 32
ORIGIN = Origin("a" * 64, "toy", DIM, ("image-fp32",))
SMALL = IndexSettings(flush_at=100, exact_below=150)  # segments of both kinds after a few hundred


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "some.index", ORIGIN, settings=SMALL) as found:
        yield found


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return clip_like(count, DIM, seed=seed)


def truth(stored: dict[str, NDArray[np.float32]], query: NDArray[np.float32], k: int) -> list[str]:
    keys = list(stored)
    cosines = np.stack([stored[key] for key in keys]).astype(np.float64) @ query
    return [keys[i] for i in np.argsort(-cosines, kind="stable")[:k]]


def test_a_history_of_changes_against_numpy(index: Index) -> None:
    random, vectors, stored = np.random.default_rng(0), rows(1500), {}
    taken = iter(range(1500))
    for step in range(60):
        count = int(random.integers(1, 40))
        places = [next(taken) for _ in range(count)]
        old = list(random.choice(list(stored), min(3, len(stored)), replace=False)) if stored else []
        keys = [*old[:1], *(f"k{place}" for place in places[len(old[:1]) :])]
        index.add(vectors[places], [{"key": key, "step": step} for key in keys])
        stored |= dict(zip(keys, vectors[places], strict=True))
        gone = [key for key in old[1:] if key not in keys]
        assert index.remove([*gone, "never there"]) == len(gone)
        for key in gone:
            del stored[key]
        if step == 40:
            index.optimize()
        assert len(index) == len(stored)
    assert "graph" in {segment["kind"] for segment in index.info()["segments"]}
    hits = 0
    for query in rows(30, seed=3):
        assert [hit.key for hit in index.search(query, 10, exact=True)] == truth(stored, query, 10)
        hits += len({hit.key for hit in index.search(query, 10)} & set(truth(stored, query, 10)))
    assert hits >= 0.98 * 300
    assert set(index.keys()) == set(stored)
    found = {
        item.key: row for _, part, items in index.batches(64) for row, item in zip(part, items, strict=True)
    }
    for key, row in stored.items():
        np.testing.assert_allclose(found[key], row, rtol=0, atol=5e-4)
    assert index.verify() == []


def test_replaced_items_are_found_once_with_their_new_record(index: Index) -> None:
    vectors = rows(3)
    first = index.add(vectors[:2], [{"key": "a", "year": 2019}, "b"])
    assert index.add(vectors[2:], [{"key": "a", "year": 2020}]) == [2]
    assert first == [0, 1]
    assert len(index) == 2
    assert index.get(["a", "c"]) == {"a": Item("a", {"year": 2020})}
    assert [(hit.key, hit.id) for hit in index.search(vectors[0], 5) if hit.key == "a"] == [("a", 2)]
    index.flush()
    assert index.remove([2, 0, "b"]) == 2  # 0 is gone already
    assert len(index) == 0
    assert index.search(vectors[0]) == []
    index.optimize()
    assert index.info()["segments"] == []


def test_filters_thresholds_and_k(index: Index) -> None:
    vectors = rows(250)
    index.add(vectors, [{"path": f"{i}.jpg", "n": i} for i in range(250)])
    index.add(rows(5, seed=9), [{"path": f"late{i}.jpg", "n": 1000 + i} for i in range(5)])
    found = index.search(vectors[7], 20, where="n >= 100 and n < 110")
    cosines = vectors[100:110] @ vectors[7]
    assert [hit.record["n"] for hit in found] == list(100 + np.argsort(-cosines, kind="stable"))
    assert [hit.key for hit in index.search(vectors[7], where={"n": 1003})] == ["late3.jpg"]
    least = float(np.sort(vectors @ vectors[7])[-5])
    assert len(index.search(vectors[7], 100, threshold=least - 1e-3, where="n < 1000")) == 5
    assert index.remove_where("n < 10 or n >= 1000") == 15
    assert len(index) == 240
    assert len(index.search(vectors[7], 1000)) == 240


def test_readers_see_what_is_added_and_go_on_while_segments_are_swapped(index: Index) -> None:
    vectors = rows(600)
    index.add(vectors[:1], ["0"])
    with Index.open(index.path) as reader, ThreadPoolExecutor(2) as pool:
        done = False

        def look() -> int:
            seen, times = 0, 0
            while not done:
                found = len(reader.search(vectors[0], 1000))
                assert found >= seen
                seen, times = found, times + 1
            return times

        looking = [pool.submit(look) for _ in range(2)]
        for start in range(1, 600, 25):
            index.add(vectors[start : start + 25], [str(i) for i in range(start, min(start + 25, 600))])
        index.optimize()
        done = True
        assert all(one.result() > 1 for one in looking)
        assert len(reader) == 600
        with pytest.raises(InputError, match=r"open for reading\. Open it with write=True"):
            reader.add(vectors[:1], ["new"])


def test_settling_makes_one_segment_where_that_pays(index: Index) -> None:
    index.add(rows(140), [str(i) for i in range(140)])
    index.settle()
    assert [one["kind"] for one in index.info()["segments"]] == ["exact"]  # 140 are compared in any case
    for seed in range(1, 4):
        index.add(rows(60, seed), [f"{seed}-{i}" for i in range(60)])
        index.flush()
    assert len(index.info()["segments"]) > 1
    index.settle()
    assert [(one["kind"], one["items"]) for one in index.info()["segments"]] == [("graph", 320)]
    index.add(rows(20, 9), [f"late{i}" for i in range(20)])
    index.settle()
    assert len(index.info()["segments"]) == 2  # a sixteenth: not worth it
    index.remove([str(i) for i in range(100)])
    index.settle()
    assert [(one["items"], one["removed"]) for one in index.info()["segments"]] == [(240, 0)]


def test_recall_is_measured_and_kept(index: Index) -> None:
    index.add(rows(500), [str(i) for i in range(500)])
    index.optimize()
    found = index.measure_recall()
    assert 0.97 <= found["recall"] <= 1
    assert found["stored"] >= 0.99
    assert index.info()["measured"]["recall"] == found
    assert index.measure_recall(rows(10, seed=4), k=3)["queries"] == 10

    # teeth: a search that misses a fifth is told
    class Short(type(index._view)):  # type: ignore[misc]
        def search(self, queries, k, where=None, *, exact=False):  # type: ignore[no-untyped-def]
            part, row, scores = super().search(queries, k, where, exact=exact)
            return (part, row, scores) if exact else (part[:, : k * 4 // 5], row[:, : k * 4 // 5], scores)

    index._view = Short(index._view.parts)
    assert index.measure_recall()["recall"] < 0.85


@pytest.mark.parametrize(
    ("vectors", "items", "words"),
    [
        (rows(2), ["a", "a"], "key 'a' is there twice"),
        (rows(2), ["a"], "expected"),
        (2 * rows(1), ["a"], "length"),
        (np.full((1, DIM), np.nan, np.float32), ["a"], "expected length 1, got nan"),
        (clip_like(1, 16), ["a"], "32"),
        (rows(1), [{"n": 1}], "expected a key or a path, got n"),
    ],
)
def test_what_cannot_be_added(
    index: Index, vectors: NDArray[np.float32], items: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        index.add(vectors, items)
    assert len(index) == 0


def test_what_cannot_be_asked(index: Index) -> None:
    index.add(rows(2), ["a", "b"])
    for query, words in (
        (np.zeros(16, np.float32), r"expected \(Q, 32\) vectors, got \(1, 16\)"),
        (np.full(DIM, np.inf, np.float32), "finite"),
        ("a cat", "opened without a model, so a query is a vector, got str"),
    ):
        with pytest.raises(InputError, match=words):
            index.search(query)
    for k in (0, 1.5, "3", True):
        for ask in (index.search_many, index.search_ids):
            with pytest.raises(InputError, match="k: expected 1 or more, got"):
                ask(rows(1), k)
    assert index.search_ids(rows(1), 10**15)[0].shape == (1, 2)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with edgeclip.load(make_bundle(tmp_path / "bundle")) as found:
        yield found


def test_bound_to_its_model(tmp_path: Path, model: Model, index: Index) -> None:
    pictures = [picture(seed) for seed in range(6)]
    with Index.create(tmp_path / "own.index", model) as own:
        damaged = tmp_path / "not.jpg"
        damaged.write_bytes(b"no picture")
        added = own.add_images([*pictures, damaged], [*(str(i) for i in range(6)), "bad"])
        assert added[:6] == list(range(6))
        assert isinstance(added[6], InputError)
        assert own.search(pictures[4], 1)[0].key == "4"
        text = own.search("a cat", 6)
        want = model.embed_images(pictures) @ model.embed_texts("a cat")
        assert [hit.key for hit in text] == [str(i) for i in np.argsort(-want)]
        np.testing.assert_allclose([hit.score for hit in text], np.sort(want)[::-1], atol=1e-3)
        np.testing.assert_allclose(own.vectors(["2"])[0], model.embed_images(pictures[2]), atol=1e-6)
        assert own.origin.variants
    index.add(rows(1), ["a"])
    with pytest.raises(
        InputError, match=r"holds vectors of toy \(model aaaaaaaaaaaa\.\.\., width 32\), the bundle is"
    ):
        Index.open(index.path, model)


def test_another_variant_of_the_model_is_told(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    origin = Origin(model.manifest.model_id, "toy", model.manifest.embedding_dim, ("image-int8-decomposed",))
    with Index.create(tmp_path / "own.index", origin):
        pass
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(12):
        Image.fromarray(picture(seed)).save(folder / f"{seed}.png")
    with Index.open(tmp_path / "own.index", model, write=True) as opened:
        assert "written by image-int8-decomposed, asked by image-fp32" in caplog.text
        opened.add_images(sorted(folder.iterdir())[:6])
        assert opened.origin.variants == ("image-int8-decomposed", "image-fp32")
    with Index.create(
        tmp_path / "own.index", origin, overwrite=True
    ) as bare:  # vectors whose variant nobody can know
        bare.add(
            model.embed_images([*folder.glob("*.png")]),
            [{"path": str(path)} for path in folder.glob("*.png")],
        )
    with Index.open(tmp_path / "own.index", model, write=True) as opened:
        (found,) = opened.measure_variants(k=5).values()
        assert found == {"recall": 1.0, "k": 5, "queries": 12, "cosine": pytest.approx(1, abs=1e-5)}
    with Index.open(tmp_path / "own.index", write=True) as bare:
        wrong = bare.vectors(list(bare.keys()))[::-1]
        bare.add(wrong, list(bare.get(bare.keys()).values()))  # other vectors than the model's
    with Index.open(tmp_path / "own.index", model, write=True) as opened:
        (found,) = opened.measure_variants(k=5).values()
        assert found["cosine"] < 0.999
        stored, keys = opened.vectors(list(opened.keys())), list(opened.keys())
        nearest = [np.argsort(-stored @ rows.T, axis=0)[:6].T for rows in (model.embed_images(keys), stored)]
        same = [len(set(a) & set(b) - {i}) for i, (a, b) in enumerate(zip(*nearest, strict=True))]
        assert found["recall"] == pytest.approx(np.mean(same) / 5, abs=1e-4)
    caplog.clear()
    with Index.open(tmp_path / "own.index", model):
        assert not caplog.text  # measured by now
