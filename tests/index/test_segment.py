"""Segments: what a search finds and scores, beside numpy in float64 over the vectors that went in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index import exact, segment
from edgeclip.runtime.index import segment_files as files
from edgeclip.runtime.index.graph import build, walk
from edgeclip.runtime.index.scales import fit_scales
from edgeclip.runtime.index.segment import Segment, recall, search_rows
from edgeclip.runtime.index.segment_files import Files, write_segment
from edgeclip.runtime.index.types import PRECISIONS, IndexSettings, Precision
from tests.mutants import broken
from tests.vectors import clip_like

COUNT, DIM, K = 3000, 128, 10
KINDS = ("exact", "graph")
LEAST = {"fp16": 0.99, "int8": 0.97, "bits": 0.97}  # of recall@10
# Of scores: halves round a component by 2**-11 of itself; a byte is a step of 1/127 of the range, about 0.002 here.
BOUND = {"fp16": 1e-3, "int8": 0.02, "bits": 1e-3}


def made(
    folder: Path,
    vectors: np.ndarray,
    precision: Precision,
    kind: str,
    *,
    ids: np.ndarray | None = None,
    threads: int = 1,
) -> Segment:
    folder.mkdir(parents=True, exist_ok=True)
    settings = IndexSettings(precision=precision, exact_below=10**6 if kind == "exact" else 0)
    like = vectors if len(vectors) else clip_like(9, vectors.shape[1])
    scales = None if precision == "fp16" else fit_scales(like, precision)
    write_segment(
        folder, np.arange(len(vectors)) if ids is None else ids, vectors, settings, scales, threads=threads
    )
    return Segment.open(folder, vectors.shape[1], settings, scales)


def truth(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    cosines = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(cosines, rows, axis=1)


@pytest.fixture(scope="module")
def stored() -> np.ndarray:
    return clip_like(COUNT, DIM)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.concatenate([clip_like(30, DIM, seed=7), clip_like(30, DIM, "text", seed=8)])


def shuffled(path, keys, codes, *rest):
    """As several threads may link them: another slot for every row."""
    order = np.random.default_rng(5).permutation(len(keys))
    build(path, keys[order], codes[order], *rest)


@pytest.fixture(scope="module")
def segments(stored, tmp_path_factory) -> dict[tuple[str, str], Segment]:
    folder = tmp_path_factory.mktemp("segments")
    ids = np.arange(COUNT) * 2 + 5  # with gaps, as removals leave them
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "build", shuffled)
        return {
            (precision, kind): made(folder / precision / kind, stored, precision, kind, ids=ids)
            for precision in PRECISIONS
            for kind in KINDS
        }


@pytest.fixture(params=["usearch", "numpy"])
def engine(request, monkeypatch):
    if request.param == "usearch":
        pytest.importorskip("usearch")
    else:
        exact.usearch.cache_clear()
        monkeypatch.setitem(__import__("sys").modules, "usearch.index", None)
        yield request.param
        exact.usearch.cache_clear()
        return
    yield request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_recall_and_scores(segments, stored, queries, precision, kind):
    found, scores = segments[precision, kind].search(queries, K)
    assert recall(found, truth(stored, queries, K)[0]) >= LEAST[precision]
    cosines = np.take_along_axis(queries.astype(np.float64) @ stored.T, found, axis=1)
    np.testing.assert_allclose(scores, cosines, rtol=0, atol=BOUND[precision])
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_query_finds_what_many_find_and_scores_what_is_stored(segments, queries, precision, kind):
    one = segments[precision, kind]
    for query in queries[::10]:
        found, scores = one.search(query[None], K)
        again, _ = one.search(query[None] * 3, K)  # of any length
        assert recall(found, again) >= 0.9
        np.testing.assert_allclose(scores[0], one.vectors(found[0]) @ query, rtol=0, atol=2e-6)
    many, _ = one.search(queries[::10], K)
    alone = np.concatenate([one.search(query[None], K)[0] for query in queries[::10]])
    assert recall(alone, many) >= 0.97  # a few queries are compared as codes, many in float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_usearch_every_vector_is_compared(segments, stored, queries, precision, engine, tmp_path):
    if engine == "numpy":
        assert made(tmp_path / "new", stored[:100], precision, "graph").kind == "exact"
    for kind in KINDS:
        old = segments[precision, kind]
        parts = Files(old.ids, old._stored, old._signs, old.graph, old._slots, old.narrow)
        again = Segment(parts, DIM, old._settings, old._scales)
        found, _ = again.search(queries, K)
        assert recall(found, truth(stored, queries, K)[0]) >= LEAST[precision]


def test_its_absence_is_told_once(monkeypatch, caplog):
    exact.usearch.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "usearch.index", None)
    assert exact.usearch() is None
    assert exact.usearch() is None
    assert [record.message for record in caplog.records] == [
        "usearch is not installed: every vector is compared, by numpy. pip install 'edgeclip[index]'"
    ]
    exact.usearch.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("allowed", ["few", "half", "holes", "far"])
def test_only_what_is_allowed_is_found_and_never_fewer_than_there_are(
    segments, stored, queries, precision, kind, allowed
):
    rows = np.arange(COUNT)
    random = np.random.default_rng(3)
    mask = {
        "few": np.isin(rows, random.choice(COUNT, 7, replace=False)),
        "half": random.random(COUNT) < 0.5,
        "holes": ~np.isin(rows, truth(stored, queries, 3)[0]),  # the best of every query are gone
        "far": (stored @ queries[0]) < np.median(stored @ queries[0]),  # none that a walk comes to
    }[allowed]
    asked = queries[:4]
    found, scores = segments[precision, kind].search(asked, K, allowed=mask)
    want = np.flatnonzero(mask)[truth(stored[mask], asked, K)[0]]
    assert found.shape == scores.shape == (4, K)
    most = min(K, int(mask.sum()))
    assert (found[:, :most] >= 0).all()
    assert mask[found[:, :most]].all()
    assert (found[:, most:] == -1).all()
    assert np.isneginf(scores[:, most:]).all()
    assert recall(found[:, :most], want) >= LEAST[precision] - 0.05  # of 40 places


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_than_are_asked_for(tmp_path, precision, kind, count):
    vectors = clip_like(count, 24, seed=2)
    one = made(tmp_path, vectors, precision, kind)
    for asked in (vectors[:1], vectors):
        found, scores = one.search(asked, 5)
        assert (np.sort(found, axis=1)[:, 5 - count :] == np.arange(count)).all()
        assert (found[:, count:] == -1).all()
        assert np.isneginf(scores[:, count:]).all()
        assert (found[:, 0] == np.arange(len(asked))).all()
    none, _ = one.search(vectors, 2, allowed=np.zeros(count, bool))
    assert (none == -1).all()
    assert one.search(vectors[:0], 3)[0].shape == (0, 3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_vectors(tmp_path, precision):
    one = made(tmp_path, np.empty((0, 16), np.float32), precision, "exact")
    found, scores = one.search(clip_like(2, 16), 3)
    assert (found == -1).all()
    assert np.isneginf(scores).all()
    assert one.vectors().shape == (0, 16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_duplicates_are_all_found_in_the_order_of_their_rows(tmp_path, precision, kind):
    vectors = clip_like(200, 64, seed=4)
    vectors[[3, 50, 120, 199]] = vectors[7]
    found, scores = made(tmp_path, vectors, precision, kind).search(vectors[7:8], 5)
    assert found[0].tolist() == [3, 7, 50, 120, 199]
    assert np.ptp(scores) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_merged_vectors_are_stored_as_they_were(segments, precision, kind, tmp_path):
    """What was read and is written again loses nothing more."""
    one = segments[precision, kind]
    rows = np.arange(0, COUNT, 3)
    once = one.vectors(rows)
    np.testing.assert_allclose(np.linalg.norm(once, axis=1), 1, atol=1e-6)
    settings = IndexSettings(precision=precision, exact_below=10**6)
    write_segment(tmp_path, one.ids[rows], once, settings, one._scales)
    np.testing.assert_array_equal(Segment.open(tmp_path, DIM, settings, one._scales).vectors(), once)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_grows(segments, stored, queries, precision, tmp_path):
    old = segments[precision, "graph"]
    more = clip_like(300, DIM, seed=11)
    ids = np.concatenate([old.ids, old.ids[-1] + 1 + np.arange(300)])
    before = {path: path.read_bytes() for path in [Path(old.graph.path)]}
    write_segment(
        tmp_path, ids, np.concatenate([old.vectors(), more]), old._settings, old._scales, grow_from=old
    )
    grown = Segment.open(tmp_path, DIM, old._settings, old._scales)
    assert all(path.read_bytes() == data for path, data in before.items())  # never in place
    if precision != "bits":  # its file begins with what the old one held
        assert (grown.graph.codes[:COUNT] == old.graph.codes).all()
    everything = np.concatenate([stored, more])
    found, _ = grown.search(np.concatenate([queries, more[:20]]), K)
    assert recall(found, truth(everything, np.concatenate([queries, more[:20]]), K)[0]) >= LEAST[precision]
    np.testing.assert_array_equal(grown.vectors(np.arange(COUNT)), old.vectors())


def test_a_graph_whose_rows_left_is_built_anew(segments, stored, tmp_path):
    old = segments["fp16", "graph"]
    write_segment(tmp_path, old.ids[1:1000], stored[1:1000], old._settings, grow_from=old)
    again = Segment.open(tmp_path, DIM, old._settings, None)
    assert again.graph.count == 999
    assert again.search(stored[5:6], 1)[0][0, 0] == 4


def test_one_thread_writes_the_same_file_each_time(stored, tmp_path):
    for name in "ab":
        made(tmp_path / name, stored[:500], "fp16", "graph", threads=1)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert not (tmp_path / "a" / files.SLOTS).exists()  # rows lie in order


def test_rows_in_memory(stored, queries):
    want, cosines = truth(stored, queries, K)
    found, scores = search_rows(stored, queries, K)
    assert recall(found, want) == 1
    np.testing.assert_allclose(scores, cosines, atol=1e-6)
    mask = np.arange(COUNT) % 7 == 0
    found, _ = search_rows(stored, queries, K, mask)
    assert recall(found, np.flatnonzero(mask)[truth(stored[mask], queries, K)[0]]) == 1


def test_a_search_of_everything_asks_no_graph(segments, queries, monkeypatch):
    one = segments["fp16", "graph"]
    monkeypatch.setattr(segment, "walk", None)
    np.testing.assert_array_equal(
        one.search(queries[:2], K, exact=True)[0], truth(one.vectors(), queries[:2], K)[0]
    )


def test_what_cannot_be_asked(segments, queries):
    one = segments["fp16", "exact"]
    wrong = queries[:2].copy()
    wrong[1, 3] = np.nan
    for asked, k, message in (
        (queries, 0, "k: expected 1 or more, got 0."),
        (queries[:, :5], 3, r"queries: expected \(Q, 128\) vectors, got \(60, 5\)"),
        (queries[0], 3, r"got \(128,\)"),
        (wrong, 3, "NaN"),
        (queries[:1] * 0, 3, "zero"),
    ):
        with pytest.raises(InputError, match=message):
            one.search(asked, k)
    with pytest.raises(InputError, match="one for each of 3000 rows"):
        one.search(queries, 3, allowed=np.ones(5, bool))


def test_what_cannot_be_written(tmp_path, stored):
    for ids, vectors, message in (
        (np.arange(3), stored[:2], r"got \(3,\) and \(2, 128\)"),
        (np.array([1, 1]), stored[:2], "ascend"),
        (np.arange(2), stored[:2] * np.nan, "finite"),
    ):
        with pytest.raises(InputError, match=message):
            write_segment(tmp_path, ids, vectors, IndexSettings())
    with pytest.raises(InputError, match="needs them"):
        write_segment(tmp_path, np.arange(2), stored[:2], IndexSettings(precision="int8"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_that_is_cut_long_or_missing(tmp_path, precision, kind, monkeypatch):
    vectors = clip_like(50, 24)
    monkeypatch.setattr(files, "build", shuffled)
    one = made(tmp_path, vectors, precision, kind)
    assert (tmp_path / files.SLOTS).exists() == (kind == "graph")
    for file in sorted(tmp_path.iterdir()):
        whole = file.read_bytes()
        for data in (whole[: len(whole) // 2], whole[:-1], b"", whole + b"\0" * 4, None):
            if (
                file.name == files.FACTS
                and data in (whole[:-1], whole + b"\0" * 4)
                and data[:-1] in (whole, whole[:-2])
            ):
                continue  # one without its line end says the same
            file.unlink() if data is None else file.write_bytes(data)
            with pytest.raises(InputError, match=rf"{file.name}.*(damaged|cannot be read)"):
                Segment.open(tmp_path, 24, one._settings, one._scales)
        file.write_bytes(whole)
    Segment.open(tmp_path, 24, one._settings, one._scales)


def test_slots_and_ids_that_are_not_the_graphs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "build", shuffled)
    vectors = clip_like(50, 24)
    one = made(tmp_path, vectors, "fp16", "graph")
    slots = np.fromfile(tmp_path / files.SLOTS, np.uint32)
    slots[:2] = slots[1::-1]
    slots.tofile(tmp_path / files.SLOTS)
    with pytest.raises(InputError, match="holds other ids"):
        Segment.open(tmp_path, 24, one._settings, None).search(vectors[:1], 3)
    slots[0] = 50
    slots.tofile(tmp_path / files.SLOTS)
    with pytest.raises(InputError, match="a slot that is not there"):
        Segment.open(tmp_path, 24, one._settings, None)


def test_facts_of_another_index(tmp_path, stored):
    made(tmp_path, stored[:20], "fp16", "exact")
    with pytest.raises(InputError, match="dim: expected 64, got 128"):
        Segment.open(tmp_path, 64, IndexSettings(), None)
    with pytest.raises(InputError, match="precision: expected int8, got fp16"):
        Segment.open(tmp_path, DIM, IndexSettings(precision="int8"), None)
    facts = json.loads((tmp_path / files.FACTS).read_text())
    (tmp_path / files.FACTS).write_text(json.dumps({**facts, "kind": "tree"}))
    with pytest.raises(InputError, match="kind 'tree'"):
        Segment.open(tmp_path, DIM, IndexSettings(), None)


def test_recall_counts_what_was_found():
    assert recall(np.array([[1, 2, -1]]), np.array([[2, 3, -1]])) == 0.5
    assert recall(np.array([[4, 2], [0, 1]]), np.array([[2, 4], [5, 6]])) == 0.5


@pytest.mark.parametrize(
    ("function", "old", "new", "precision"),
    [
        (Segment._quick, "allowed[rows]", "True", "fp16"),  # what is gone is found
        (Segment._rows_of_ids, "np.searchsorted(self.ids, ids)", "ids", "fp16"),  # ids taken for rows
        (Segment._places, "slots[rows].astype(np.int64)", "rows", "int8"),  # another row's vector
    ],
)
def test_the_comparison_notices(segments, stored, queries, function, old, new, precision, monkeypatch):
    one = segments[precision, "graph"]
    monkeypatch.setattr(Segment, function.__name__, broken(function, old, new))
    mask = ~np.isin(np.arange(COUNT), truth(stored, queries, 3)[0])
    try:
        found, scores = one.search(queries, K, allowed=mask)
        fine = mask[found].all() and np.allclose(
            scores, np.einsum("qkd,qd->qk", stored[found], queries), atol=0.02
        )
        moved = np.abs(one.vectors(np.arange(50)) - stored[:50]).max() > 0.05
    except IndexError:
        return
    assert not fine or moved


@pytest.fixture(scope="module")
def thin() -> tuple[np.ndarray, np.ndarray]:
    """Vectors that differ in few of their 128 directions, and queries."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(DIM, DIM)))[0][:, :20].astype(np.float32)
    return clip_like(2000, 20) @ turn.T, np.concatenate(
        [clip_like(25, 20, kind, 3) for kind in ("image", "text")]
    ) @ turn.T


def test_a_walk_by_few_directions(thin, tmp_path, monkeypatch):
    vectors, queries = thin
    monkeypatch.setattr(files, "build", shuffled)
    one = made(tmp_path / "old", vectors[:1900], "fp16", "graph")
    assert one.narrow is not None
    assert one.graph.width == one.narrow.dim == 16
    found, scores = one.search(queries, K)
    assert recall(found, truth(vectors[:1900], queries, K)[0]) >= LEAST["fp16"]
    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", vectors[found], queries), atol=BOUND["fp16"])
    mask = np.arange(1900) % 3 > 0
    found, _ = one.search(queries, K, allowed=mask)
    assert recall(found, np.flatnonzero(mask)[truth(vectors[:1900][mask], queries, K)[0]]) >= LEAST["fp16"]
    monkeypatch.setattr(exact, "usearch", lambda: None)
    found, _ = Segment.open(tmp_path / "old", DIM, one._settings, None).search(queries, K)
    assert recall(found, truth(vectors[:1900], queries, K)[0]) >= LEAST["fp16"]


def test_it_grows_and_keeps_its_directions(thin, tmp_path):
    vectors, queries = thin
    (tmp_path / "new").mkdir()
    one = made(tmp_path / "old", vectors[:1500], "fp16", "graph")
    write_segment(tmp_path / "new", np.arange(2000), vectors, one._settings, grow_from=one)
    grown = Segment.open(tmp_path / "new", DIM, one._settings, None)
    np.testing.assert_array_equal(grown.narrow.axes, one.narrow.axes)
    assert recall(grown.search(queries, K)[0], truth(vectors, queries, K)[0]) >= LEAST["fp16"]
    (tmp_path / "new" / files.NARROW).write_bytes(b"no")
    with pytest.raises(InputError, match=r"narrow\.safetensors: damaged"):
        Segment.open(tmp_path / "new", DIM, one._settings, None)
    (tmp_path / "new" / files.NARROW).unlink()
    with pytest.raises(InputError, match=r"narrow\.safetensors: cannot be read"):
        Segment.open(tmp_path / "new", DIM, one._settings, None)


def test_a_larger_graph_is_walked_with_more_effort(segments, queries, monkeypatch):
    one, efforts = segments["fp16", "graph"], []

    def heard(walker, codes, count, expansion):
        efforts.append(expansion)
        return walk(walker, codes, count, expansion)

    monkeypatch.setattr(segment, "walk", heard)
    one.search(queries[:1], K)
    monkeypatch.setattr(segment, "_SIZED_FOR", one.count // 10)
    one.search(queries[:1], K)
    one.search(queries[:1], K, expansion=70)
    asked = one._settings.expansion_search
    assert efforts == [asked, int(asked * 10**0.7), 70]
