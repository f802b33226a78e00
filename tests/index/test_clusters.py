"""k-means beside scipy's, threshold clusters beside single linkage."""

from __future__ import annotations

import numpy as np
import pytest

import edgeclip
import edgeclip.runtime.kmeans as steps
from edgeclip.errors import InputError
from edgeclip.runtime.index import clusters
from edgeclip.runtime.index.clusters import cluster, cluster_by_threshold, name_clusters
from edgeclip.runtime.kmeans import kmeans, means, seed_centres
from tests.index.groups import Compared, copies, unit
from tests.index.test_components import between_pairs, same_partition, scipy_partition
from tests.mutants import broken
from tests.vectors import clip_like

vq = pytest.importorskip("scipy.cluster.vq")


def inertia(vectors: np.ndarray, labels: np.ndarray) -> float:
    """1 - cosine to the own cluster's unit mean, summed: in float64, cluster by cluster."""
    total = 0.0
    for label in np.unique(labels):
        own = vectors[labels == label].astype(np.float64)
        centre = own.mean(axis=0) / np.linalg.norm(own.mean(axis=0))
        total += float((1 - own @ centre).sum())
    return total


@pytest.mark.parametrize("k", [1, 5, 20])
def test_kmeans_is_no_worse_than_scipys_from_the_same_start(k: int) -> None:
    vectors = clip_like(800, 32)
    start = seed_centres(vectors, k, np.random.default_rng(3))
    centres, labels, cost = kmeans(vectors, start, rounds=100)
    theirs = vq.kmeans2(vectors.astype(np.float64), start.astype(np.float64), iter=100, minit="matrix")[1]
    assert cost == pytest.approx(inertia(vectors, labels), rel=1e-4)
    # scipy's centres are not of unit length, so that its optimum is a neighbouring one
    assert cost <= inertia(vectors, theirs) * 1.01
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-6)


def test_well_separated_clusters_are_scipys() -> None:
    vectors = copies(np.eye(6, 32), 50, 0.3)
    start = seed_centres(vectors, 6, np.random.default_rng(0))
    _, labels, _ = kmeans(vectors, start)
    theirs = vq.kmeans2(vectors.astype(np.float64), start.astype(np.float64), iter=50, minit="matrix")[1]
    assert same_partition(labels, theirs)
    assert same_partition(labels, np.repeat(np.arange(6), 50))


def test_seeds_fall_into_different_clusters() -> None:
    vectors = copies(np.eye(8, 64), 30, 0.05)
    for seed in range(5):
        chosen = seed_centres(vectors, 8, np.random.default_rng(seed))
        assert len(set((chosen @ vectors.T).argmax(axis=1) // 30)) == 8


def test_clusters_have_sizes_centres_and_their_nearest_picture() -> None:
    vectors = np.concatenate(
        [copies(np.eye(3, 16)[i : i + 1], n, 0.2, i) for i, n in enumerate((20, 50, 30))]
    )
    rows = Compared(vectors, [{"n": i} for i in range(100)])
    found = cluster(rows, 3)
    assert [one.size for one in found.clusters] == [50, 30, 20]
    assert found.labels.tolist() == [2] * 20 + [0] * 50 + [1] * 30
    assert found.keys == tuple(item.key for item in rows.items)
    for one in found.clusters:
        own = found.labels == one.number
        cosines = vectors[own].astype(np.float64) @ found.centres[one.number]
        assert one.nearest.id == rows.ids[own][cosines.argmax()]
        assert one.nearest.record["n"] == one.nearest.id // 3
        assert one.nearest.score == pytest.approx(cosines.max(), abs=1e-6)
        assert one.tightness == pytest.approx(cosines.mean(), abs=1e-6)
        np.testing.assert_allclose(found.scores[own], cosines, atol=1e-6)


def test_one_seed_gives_one_answer() -> None:
    rows = Compared(clip_like(300, 16))
    one, two = cluster(rows, 12, seed=4), cluster(rows, 12, seed=4)
    assert (one.labels == two.labels).all()
    assert (one.centres == two.centres).all()
    assert not same_partition(one.labels, cluster(rows, 12, seed=5).labels)


def test_a_large_index_is_learnt_from_a_part_and_given_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "LEARN_FROM", 60)
    rows = Compared(copies(np.eye(5, 32), 40, 0.3))
    assert same_partition(cluster(rows, 5).labels, np.repeat(np.arange(5), 40))


def test_no_cluster_is_empty_where_copies_are_many() -> None:
    rows = Compared(np.concatenate([np.repeat(np.eye(2, 8), 20, axis=0), np.eye(8)[2:4]]))
    assert [one.size for one in cluster(rows, 4).clusters] == [20, 20, 1, 1]
    assert sum(one.size for one in cluster(Compared(np.repeat(np.eye(1, 8), 6, axis=0)), 6).clusters) == 6


def test_every_item_its_own_cluster_and_all_in_one() -> None:
    rows = Compared(clip_like(30, 8))
    assert len(cluster(rows, 30).clusters) == 30
    (whole,) = cluster(rows, 1).clusters
    assert whole.size == 30


@pytest.mark.parametrize("near", [0.95, 0.8])
def test_threshold_clusters_are_single_linkage(near: float) -> None:
    rows = Compared(clip_like(250, 16))
    threshold = between_pairs(rows.vectors, near)
    found = cluster_by_threshold(rows, threshold, least=1)
    assert same_partition(found.labels, scipy_partition(rows.vectors, threshold))
    sizes = [one.size for one in found.clusters]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 250


def test_small_ones_are_in_no_cluster() -> None:
    rows = Compared(np.repeat(np.eye(4), [1, 2, 5, 1], axis=0))
    found = cluster_by_threshold(rows, 0.9)
    assert found.labels.tolist() == [-1, 1, 1, 0, 0, 0, 0, 0, -1]
    assert found.scores.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0]
    assert [one.size for one in cluster_by_threshold(rows, 0.9, least=3).clusters] == [5]
    assert cluster_by_threshold(Compared(np.eye(3)), 0.9).clusters == ()


def test_clusters_are_named_by_the_model() -> None:
    labels = ["a cat", "a bicycle", "an umbrella"]
    with edgeclip.load("nano") as model:
        rows = Compared(np.repeat(model.make_labels(labels).vectors, [2, 5, 3], axis=0))
        named = name_clusters(cluster(rows, 3), model, labels)
    assert [one.label for one in named.clusters] == ["a bicycle", "an umbrella", "a cat"]
    assert all(one.label_score == pytest.approx(1, abs=1e-4) for one in named.clusters)
    assert named.clusters[0].to_dict()["label"] == "a bicycle"


def test_refusals() -> None:
    rows = Compared(np.eye(3))
    for k in (0, 4):
        with pytest.raises(InputError, match=f"k: expected 1 to 3, the number of items, got {k}"):
            cluster(rows, k)
    with pytest.raises(InputError, match="the index holds no items to put together"):
        cluster(Compared(np.empty((0, 3))), 1)
    with pytest.raises(InputError, match="least: expected 1 or more, got 0"):
        cluster_by_threshold(rows, 0.9, least=0)


def test_means_keep_the_centre_where_rows_cancel_out() -> None:
    before = np.eye(2, dtype=np.float32)
    found = means(unit(np.array([[1.0, 0], [-1, 0], [0, 1]])), np.array([0, 0, 1]), 2, before)
    np.testing.assert_allclose(found, before)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("means", "sums / np.maximum(lengths, 1e-6)", "sums"),  # not of unit length
        ("assign", "cosines.argmax(axis=1)", "cosines.argmin(axis=1)"),
    ],
)
def test_planted_faults_are_seen(monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str) -> None:
    vectors = clip_like(400, 16)
    start = seed_centres(vectors, 8, np.random.default_rng(0))
    good = kmeans(vectors, start)[2]
    monkeypatch.setattr(steps, name, broken(getattr(steps, name), old, new))
    _, labels, cost = kmeans(vectors, start)
    assert cost > good * 1.01 or abs(cost - inertia(vectors, labels)) > 1e-2
