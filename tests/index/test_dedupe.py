"""Near-duplicates, what is kept of them, and the threshold that is suggested."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip.runtime.index import dedupe
from edgeclip.runtime.index.dedupe import find_duplicates, find_identical, suggest_threshold
from edgeclip.runtime.index.index import Index
from edgeclip.runtime.index.types import IndexSettings, Origin
from tests.index.groups import Compared, copies, unit
from tests.mutants import broken
from tests.vectors import clip_like

ARC = np.arange(5) * 0.3  # neighbours have cosine 0.955, the next but one 0.825
CHAIN = np.stack([np.cos(ARC), np.sin(ARC)], axis=1)


def without(rows: Compared, ids: set[int]) -> Compared:
    """What is left of the rows."""
    left = Compared(rows.vectors)
    stays = ~np.isin(rows.ids, sorted(ids))
    for name, value in (("ids", rows.ids[stays]), ("vectors", rows.vectors[stays])):
        object.__setattr__(left, name, value)
    object.__setattr__(left, "items", [item for item, kept in zip(rows.items, stays, strict=True) if kept])
    return left


def test_planted_copies_are_found_and_nothing_else() -> None:
    originals = clip_like(300, 64)
    cosines = originals @ originals.T - 2 * np.eye(300)
    originals = originals[cosines.max(axis=1) < 0.9]
    rows = Compared(np.concatenate([originals, copies(originals[:40], 2, 0.1)]))
    found = find_duplicates(rows, 0.97)
    assert len(found.groups) == 40
    assert len(found.copies) == 80
    for group in found.groups:
        place = group.kept.id // 3
        expected = {len(originals) + 2 * place, len(originals) + 2 * place + 1}
        assert {copy.id // 3 for copy in group.copies} == expected
        for copy in group.copies:
            assert copy.score == pytest.approx(rows.vectors[copy.id // 3] @ rows.vectors[place], abs=1e-5)


@pytest.mark.parametrize("threshold", [0.9, 0.8, 0.7])
def test_no_two_that_are_kept_are_near_and_asking_again_finds_nothing(threshold: float) -> None:
    rows = Compared(clip_like(400, 16))
    found = find_duplicates(rows, threshold)
    left = without(rows, {copy.id for copy in found.copies})
    assert found.copies
    assert len(left.ids) > 1
    cosines = left.vectors @ left.vectors.T - 2 * np.eye(len(left.ids))
    assert cosines.max() < threshold
    assert not find_duplicates(left, threshold).groups
    assert all(copy.score >= threshold - 1e-6 for copy in found.copies)


def test_a_chain_keeps_what_is_far_from_its_first_unless_told() -> None:
    rows = Compared(CHAIN)
    found = find_duplicates(rows, 0.95)
    assert [(group.kept.id, [copy.id for copy in group.copies]) for group in found.groups] == [
        (0, [3]),
        (6, [9]),
    ]
    (whole,) = find_duplicates(rows, 0.95, chain=True).groups
    assert whole.kept.id == 0
    assert [copy.id for copy in whole.copies] == [3, 6, 9, 12]
    assert not find_duplicates(without(rows, {3, 6, 9, 12}), 0.95, chain=True).groups


@pytest.mark.parametrize(("keep", "kept"), [("first", 0), ("largest", 2), ("newest", 1), ("oldest", 3)])
def test_the_rule_says_which_is_kept(keep: str, kept: int) -> None:
    records: list[dict[str, float]] = [
        {"size": 10, "mtime": 5.0},
        {"size": 20, "mtime": 9.0},
        {"size": 30, "mtime": 7.0},
        {"mtime": 1},
        {"size": 30, "mtime": True},  # no time: last of all; as large as the third, but added later
    ]
    rows = Compared(np.ones((5, 1)), records)
    (group,) = find_duplicates(rows, 1, keep=keep).groups
    assert group.kept.key == f"item {kept}"
    assert len(group.copies) == 4


@pytest.mark.parametrize(
    "settings",
    [
        IndexSettings(),
        IndexSettings(precision="int8"),
        IndexSettings(precision="bits"),
        IndexSettings(exact_below=0),
        IndexSettings(flush_at=100),
    ],
    ids=["fp16", "int8", "bits", "graph", "segments"],
)
def test_copies_in_an_index_go_in_one_step(settings: IndexSettings, tmp_path: Path) -> None:
    originals = unit(np.random.default_rng(0).normal(size=(300, 64)))
    vectors = np.concatenate([originals, copies(originals[:30], 2, 0.1)])
    with Index.create(tmp_path / "made.index", Origin("1" * 64, "a", 64), settings=settings) as index:
        for start in range(0, 360, 90):
            index.add(vectors[start : start + 90], [f"{i}" for i in range(start, start + 90)])
        index.flush()
        index.remove(["299"])
        found = find_duplicates(index, 0.9)
        assert {(group.kept.key, len(group.copies)) for group in found.groups} == {
            (f"{i}", 2) for i in range(30)
        }
        assert found.remove_from(index) == 60
        assert sorted(map(int, index.keys())) == list(range(299))
        assert not find_duplicates(index, 0.9).groups
    with Index.open(tmp_path / "made.index") as again:
        assert len(again) == 299


def test_threshold_one_takes_equal_vectors_only() -> None:
    originals = clip_like(20, 32)
    rows = Compared(np.concatenate([originals, originals[:3], copies(originals[5:9], 1, 0.01)]))
    assert [group.kept.id // 3 for group in find_duplicates(rows, 1).groups] == [0, 1, 2]


def test_nothing_is_found_among_different_ones() -> None:
    found = find_duplicates(Compared(np.eye(5)), 0.9)
    assert found.groups == ()
    assert found.copies == []
    assert found.items == 5


def test_the_suggestion_is_laions_for_a_clip_like_model() -> None:
    # unrelated pictures at cosine 0.5, as in CLIP L/14
    random = np.random.default_rng(0)
    spread = random.normal(size=(500, 256))
    rows = Compared(unit(unit(spread) + np.eye(1, 256)))
    found = suggest_threshold(rows)
    assert found.unrelated == pytest.approx(0.5, abs=0.02)
    assert found.threshold == pytest.approx(0.94, abs=0.003)
    assert found.nearest["50"] <= found.nearest["90"] <= found.nearest["99"] < 0.9
    assert find_duplicates(rows).threshold == found.threshold
    assert suggest_threshold(rows) == found  # the same each time


@pytest.mark.parametrize(("noise", "share"), [(0.2, 0.3), (0.35, 0.3), (0.5, 0.05), (0.4, 0.9)])
def test_the_suggestion_lies_between_copies_and_neighbours(noise: float, share: float) -> None:
    random = np.random.default_rng(0)
    near = unit(
        random.normal(size=(30, 128))
    )  # neighbours at cosine 0.5 to 0.7, in a model without a common direction
    originals = unit(np.repeat(near, 20, axis=0) + 0.8 * unit(random.normal(size=(600, 128))))
    several = copies(originals[: int(600 * share)], 1, noise)
    rows = Compared(np.concatenate([originals, several]))
    found = suggest_threshold(rows)
    neighbours = (originals @ originals.T - 2 * np.eye(600)).max()
    its_own = np.einsum("nd,nd->n", originals[: len(several)], several).min()
    assert neighbours < found.threshold < its_own
    assert find_duplicates(rows).threshold == found.threshold


def test_the_nearest_is_never_the_item_itself() -> None:
    assert suggest_threshold(Compared(np.eye(4))).nearest["99"] == 0
    twice = suggest_threshold(Compared(np.repeat(np.eye(4), 2, axis=0)))
    assert twice.nearest["50"] == 1


def test_files_of_the_same_bytes(tmp_path: Path) -> None:
    contents = [b"one", b"two", b"one", b"three", b"one", b"six"]
    records: list[dict[str, object]] = []
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.jpg").write_bytes(content)
        records.append({"path": str(tmp_path / f"{i}.jpg"), "size": len(content), "mtime": -i})
    records.append({"path": str(tmp_path / "gone.jpg")})
    records.append({**records[0], "box": [0, 0, 1, 1]})  # a region of the first
    shard = {"source": "a.tar", "offset": 512, "size": 3, "mtime": -9, "sha256": sha256(b"two").hexdigest()}
    records.append(shard)
    rows = Compared(clip_like(9, 4), records)
    found = find_identical(rows, keep="oldest")
    kept = [(group.kept.key, [copy.key for copy in group.copies]) for group in found.groups]
    assert kept == [("item 4", ["item 2", "item 0"]), ("item 8", ["item 1"])]
    assert found.unread == (("item 6", "cannot be read (No such file or directory)"),)
    assert found.threshold is None
    assert found.items == 8


def test_an_index_without_files_says_so() -> None:
    with pytest.raises(
        InputError, match=r"item 0: cannot be read \(it names no file\). None of 3 items has a file"
    ):
        find_identical(Compared(np.eye(3)))


def test_refusals() -> None:
    rows = Compared(np.ones((2, 1)))
    with pytest.raises(InputError, match=r"keep 'best': unknown. Choose from first, largest, newest, oldest"):
        find_duplicates(rows, 0.9, keep="best")
    with pytest.raises(InputError, match=r"keep 'largest': no duplicate has 'size' in its record"):
        find_duplicates(rows, 0.9, keep="largest")
    with pytest.raises(InputError, match="needs two items at least, the index holds 1"):
        suggest_threshold(Compared(np.eye(1)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("left = left[~near]", "left = left[1:]"),  # a copy is kept as well
        ("near = cosines >= least", "near = cosines >= -1"),  # the whole component goes
    ],
)
def test_planted_faults_are_seen(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    rows = Compared(np.concatenate([CHAIN, CHAIN[:1]]))
    whole = find_duplicates(rows, 0.95).groups
    monkeypatch.setattr(dedupe, "_split", broken(dedupe._split, old, new))
    assert find_duplicates(rows, 0.95).groups != whole
