"""Components beside scipy's single linkage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index import components
from edgeclip.runtime.index.components import Sets, collect, join_near
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.types import Origin
from tests.index.groups import Compared, copies
from tests.mutants import broken
from tests.vectors import clip_like

hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
distance = pytest.importorskip("scipy.spatial.distance")


def between_pairs(vectors: np.ndarray, near: float) -> float:
    """A cosine near this one that no pair has, so that rounding decides nothing."""
    cosines = 1 - np.sort(distance.pdist(vectors.astype(np.float64), "cosine"))[::-1]
    place = np.searchsorted(cosines, near)
    gaps = np.diff(cosines[max(place - 50, 0) : place + 50])
    start = max(place - 50, 0) + gaps.argmax()
    assert gaps.max() > 1e-5
    return float((cosines[start] + cosines[start + 1]) / 2)


def scipy_partition(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Labels of single linkage at this cosine."""
    tree = hierarchy.linkage(distance.pdist(vectors.astype(np.float64), "cosine"), "single")
    return np.asarray(hierarchy.fcluster(tree, 1 - threshold, "distance"))


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two labellings put the same rows together."""
    both = np.unique(np.stack([one, other], axis=1), axis=0)
    return len(both) == len(np.unique(one)) == len(np.unique(other))


@pytest.mark.parametrize("near", [0.99, 0.9, 0.8, 0.7])
def test_components_are_scipys_single_linkage(near: float) -> None:
    originals = clip_like(120, 24)
    rows = Compared(np.concatenate([originals, copies(originals[:60], 2, 0.2), originals[:5]]))
    threshold = between_pairs(rows.vectors, near)
    found = join_near(rows, threshold)
    assert same_partition(found.labels, scipy_partition(rows.vectors, threshold))
    assert (found.ids == rows.ids).all()
    assert (found.labels <= np.arange(len(found.ids))).all()  # named after its first member
    assert 1 < len(np.unique(found.labels)) < len(rows.ids)


def clumps() -> np.ndarray:
    """Three pairs of clumps of 30: nearer than 0.9 to each other, but not among each other's 16 nearest."""
    originals = clip_like(3, 16, seed=5)
    return np.concatenate([copies(one, 30, 0.02) for one in (originals, copies(originals, 1, 0.35))])


def test_more_are_asked_for_where_all_the_neighbours_are_near() -> None:
    rows = Compared(clumps())
    found = join_near(rows, 0.9)
    assert [len(group) for group in found.groups()] == [60, 60, 60]
    assert {k for _, k in rows.asked} == {16, 64}


def test_a_chain_is_followed_from_end_to_end() -> None:
    angles = np.arange(300) * 0.02
    rows = Compared(
        np.stack([np.cos(angles), np.sin(angles)], axis=1)[np.random.default_rng(0).permutation(300)]
    )
    assert len(np.unique(join_near(rows, np.cos(0.0201)).labels)) == 1
    assert len(np.unique(join_near(rows, np.cos(0.0199)).labels)) == 300


def test_a_pair_counts_whichever_finds_the_other() -> None:
    rows = Compared(copies(clip_like(3, 16), 2, 0.05))
    for pair in ((0, 1), (1, 0)):
        rows.blind.clear()
        rows.blind.add(pair)
        assert len(join_near(rows, 0.95).groups()) == 3
    rows.blind |= {(0, 1), (1, 0)}
    assert len(join_near(rows, 0.95).groups()) == 2


def test_a_thousand_equal_vectors_ask_once() -> None:
    rows = Compared(np.repeat(clip_like(2, 16), [1000, 1], axis=0))
    assert [len(group) for group in join_near(rows, 1).groups()] == [1000]
    assert sum(count for count, _ in rows.asked) < 10


def test_batches_and_groups_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Compared(copies(clip_like(40, 16), 5, 0.1))
    whole = join_near(rows, 0.95).labels
    monkeypatch.setattr(components, "CELLS", 64)  # four queries at once
    assert (join_near(rows, 0.95).labels == whole).all()
    told: list[int] = []
    join_near(rows, 0.95, progress=told.append)
    assert sum(told) == 200


def test_the_largest_group_comes_first_then_the_oldest() -> None:
    rows = Compared(np.repeat(np.eye(4), [2, 1, 3, 2], axis=0))
    groups = join_near(rows, 0.5).groups()
    assert [group.tolist() for group in groups] == [[3, 4, 5], [0, 1], [6, 7]]
    assert [group.tolist() for group in join_near(rows, 0.5).groups(least=1)][-1] == [2]


def test_what_a_writer_does_meanwhile_changes_nothing(tmp_path: Path) -> None:
    vectors = copies(clip_like(20, 16), 3, 0.02)
    names = [f"{i}" for i in range(60)]
    with Index.create(tmp_path / "made.index", Origin("1" * 64, "a", 16)) as writer:
        writer.add(vectors[:30], names[:30])
        writer.flush()
        writer.add(vectors[30:], names[30:])
        with Index.open(tmp_path / "made.index") as reader:
            expected = join_near(reader, 0.95)
            pinned = reader.pinned()
            steps: Iterator[Callable[[], object]] = iter(
                [
                    lambda: writer.remove(names[:40]),
                    writer.optimize,
                    lambda: writer.add(vectors[:20], names[:20]),
                ]
            )

            def meanwhile(more: int) -> None:
                for step in steps:
                    step()

            found = join_near(pinned, 0.95, progress=meanwhile)
            assert (found.ids == expected.ids).all()
            assert (found.labels == expected.labels).all()
            assert len(collect(pinned, expected.ids)[1]) == 60
            assert len(join_near(reader, 0.95).ids) == 40


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_join(count: int) -> None:
    found = join_near(Compared(np.eye(3)[:count]), 0.9)
    assert len(found.labels) == count
    assert not found.groups()


def test_collect_gives_vectors_and_items_in_order_of_ids() -> None:
    rows = Compared(clip_like(9000, 8), [{"n": i} for i in range(9000)])
    wanted = rows.ids[[8999, 5, 4097]]
    vectors, items = collect(rows, wanted)
    assert (vectors == rows.vectors[[5, 4097, 8999]]).all()
    assert [item.record["n"] for item in items] == [5, 4097, 8999]


def test_a_threshold_is_a_cosine() -> None:
    with pytest.raises(InputError, match=r"threshold: expected a cosine, -1 to 1, got 94"):
        join_near(Compared(np.eye(2)), 94)


def test_sets_join_many_pairs_at_once() -> None:
    random = np.random.default_rng(0)
    left, right = random.integers(0, 500, (2, 300))
    sets = Sets(500)
    sets.join(left, right)
    expected = list(range(500))  # one pair after the other, the slow way
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        x, y = expected[a], expected[b]
        expected = [min(x, y) if root in (x, y) else root for root in expected]
    assert sets.roots.tolist() == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("full[some] = near[:, -1]", "full[some] = False"),  # 16 neighbours are all that is asked for
        ("(cosines >= least)", "(cosines >= least + 0.02)"),
        (
            "yield places[some][asking], np",
            "yield places[asking], np",
        ),  # of the first part
    ],
)
def test_planted_faults_are_seen(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    rows = Compared(np.concatenate([clumps(), clip_like(80, 16, seed=1)]))
    monkeypatch.setattr(components, "CELLS", 256)
    expected = scipy_partition(rows.vectors, 0.9)
    assert same_partition(join_near(rows, 0.9).labels, expected)
    monkeypatch.setattr(components, "_near_pairs", broken(components._near_pairs, old, new))
    assert not same_partition(join_near(rows, 0.9).labels, expected)
