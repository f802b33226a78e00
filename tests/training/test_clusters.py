"""Pairs are divided as a model sees them, and a batch is of one cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from edgeclip.errors import TrainingError
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.training.clusters import divide, embed, group
from edgeclip.models.training.data.cluster_labels import (
    HELD_OUT,
    UNREADABLE,
    Clusters,
    load_clusters,
    save_clusters,
)
from edgeclip.models.training.data.clustered import ClusteredPairs, InClusters
from edgeclip.models.training.data.pairs import ShuffledPairs
from edgeclip.models.training.data.shapes import Shapes
from edgeclip.models.training.data.shuffled import fingerprint_of
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.starts import start
from tests.training.tiny import tiny

PAIRS = tiny(data="shapes:150", validation_share=0.2, batch_size=8)
KEYS = Shapes(150).keys


class Mean(DualEncoder):
    """A picture's mean colour; of a text, whether its first id is even."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.image, self.text = nn.Identity(), nn.Identity()
        self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(())), None
        self.broken = broken

    def encode_image(self, pixels: Tensor) -> Tensor:
        rows = pixels.mean(dim=(2, 3)) + 2
        if self.broken:
            rows[3] = torch.nan
        return rows

    def encode_text(self, input_ids: Tensor) -> Tensor:
        even = (input_ids[:, 2] % 2).float()
        return torch.stack([even, 1 - even, 0 * even], dim=1)


@pytest.fixture(scope="module")
def source() -> Source:
    return replace(start(PAIRS), model=Mean(), embedding_dim=3, digest="first")


def labelled(per_cluster: list[int], recipe: Recipe = PAIRS) -> tuple[Clusters, InClusters]:
    """Batches of made-up clusters of so many training pairs each; what is left could not be read."""
    plain = ShuffledPairs(recipe, start(recipe), Shard()).shuffled
    labels = np.full(len(KEYS), HELD_OUT, np.int64)
    labels[plain.train] = UNREADABLE
    labels[plain.train[: sum(per_cluster)]] = np.repeat(np.arange(len(per_cluster)) * 7, per_cluster)
    found = Clusters(labels, 100, fingerprint_of(KEYS), ("a",))
    return found, InClusters(recipe, KEYS, Shard(), found)


def drawn(batches: InClusters, steps: range) -> list[list[int]]:
    return [batches.draw(step, lambda place, index, rng: index)[0] for step in steps]


def test_made_up_groups_are_found() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 200)
    rows = np.eye(8)[truth] + 0.1 * random.standard_normal((200, 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    labels = group(rows, 3, seed=1)
    assert len(Counter(zip(truth.tolist(), labels.tolist(), strict=True))) == 3  # one label for each group
    assert np.array_equal(labels, group(rows, 3, seed=1))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_fewer_kinds_than_clusters_leave_some_empty(k: int) -> None:
    rows = np.eye(4, dtype=np.float32)[[0, 1, 0, 1, 1]]
    labels = group(rows, k)
    assert labels.max() < k
    assert len(set(labels[[0, 2]])) == len(set(labels[[1, 3, 4]])) == 1
    assert len(set(labels)) == min(k, 2)
    assert len(group(rows[:2], k)) == 2  # fewer pairs than clusters


def test_labels_of_stages_are_one(source: Source) -> None:
    pairs = ShuffledPairs(PAIRS, source, Shard())
    first = divide(source, pairs, (3, 2), workers=2)
    held_out = np.setdiff1d(np.arange(150), pairs.shuffled.train)
    assert set(first.labels[held_out].tolist()) == {HELD_OUT}
    assert first.count == 6
    assert 0 <= first.labels[pairs.shuffled.train].min() <= first.labels.max() < 6
    _, plain = pairs.plain([int(i) for i in pairs.shuffled.train])
    assert plain is not None
    by_text = first.labels[pairs.shuffled.train] % 2  # captions are the last digit
    assert len(set(zip(by_text.tolist(), (plain.input_ids[:, 2] % 2).tolist(), strict=True))) == 2
    second = divide(replace(source, digest="second"), pairs, (3, 2), before=first)
    train = pairs.shuffled.train
    assert np.array_equal(second.labels[train], first.labels[train] * 6 + first.labels[train])
    assert (second.count, second.models) == (36, ("first", "second"))


def test_processes_embed_their_share(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, cpu = ShuffledPairs(PAIRS, source, Shard()), torch.device("cpu")
    whole = embed(source, pairs, device=cpu)
    assert whole[2].all()
    shares: list[list[Tensor]] = [[], []]
    for rank in range(2):
        monkeypatch.setattr(
            "edgeclip.models.training.distributed.gather",
            lambda x, shard: (shares[shard.rank].append(x), torch.cat([x, x]))[1],
        )
        embed(source, pairs, device=cpu, shard=Shard(rank, 2))
    gathered = iter([torch.cat(both) for both in zip(*shares, strict=True)])
    monkeypatch.setattr("edgeclip.models.training.distributed.gather", lambda x, shard: next(gathered))
    for found, want in zip(embed(source, pairs, device=cpu, shard=Shard(0, 2)), whole, strict=True):
        assert np.array_equal(found, want)


def test_what_cannot_be_read_has_no_label(source: Source, tmp_path: Path) -> None:
    for i in range(12):
        Image.new("RGB", (16, 16), (20 * i, 0, 255 - 20 * i)).save(tmp_path / f"{i:02}.png")
        (tmp_path / f"{i:02}.txt").write_text(f"a {i}")
    (tmp_path / "05.png").write_bytes(b"no picture")
    recipe = tiny(data=str(tmp_path), validation_share=0, batch_size=4)
    pairs = ShuffledPairs(recipe, source, Shard())
    found = divide(source, pairs, (2, 1))
    assert np.flatnonzero(found.labels < 0).tolist() == [5]
    assert found.labels[5] == UNREADABLE
    earlier = replace(found, labels=np.where(np.arange(12) == 7, UNREADABLE, found.labels))
    later = divide(source, pairs, (2, 1), before=earlier).labels
    assert np.flatnonzero(later == UNREADABLE).tolist() == [5, 7]
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(TrainingError, match=r"00\.png: unreadable, and so is every other pair"):
        divide(source, pairs, (2, 1))


def test_an_embedding_that_is_no_number_is_refused(source: Source) -> None:
    pairs = ShuffledPairs(PAIRS, source, Shard())
    bad = KEYS[int(pairs.shuffled.train[3])]
    with pytest.raises(TrainingError, match=f"{bad}: tiny makes an embedding of it that is not finite"):
        divide(replace(source, model=Mean(broken=True)), pairs, (2, 2))


def test_a_batch_is_of_one_cluster_and_clusters_take_turns() -> None:
    clusters, batches = labelled([33, 35, 37])
    assert batches.steps == 12
    for epoch in range(2):
        steps = drawn(batches, range(12 * epoch, 12 * epoch + 12))
        kinds = [{int(clusters.labels[i]) for i in step} for step in steps]
        assert all(len(kind) == 1 for kind in kinds)
        turns = [kind.pop() for kind in kinds]
        assert all(set(turns[i : i + 3]) == {0, 7, 14} for i in range(0, 12, 3))
        flat = [i for step in steps for i in step]
        assert len(set(flat)) == len(flat) == 96
    assert drawn(batches, range(12)) != drawn(batches, range(12, 24))
    assert drawn(batches, range(3, 4)) == drawn(labelled([33, 35, 37])[1], range(3, 4))
    assert batches.used == pytest.approx(96 / len(batches.train))
    assert clusters.used(8) == batches.used


def test_large_clusters_do_not_end_an_epoch_alone() -> None:
    clusters, batches = labelled([80, 17, 7])  # 10 batches, 2, and none
    turns = [int(clusters.labels[step[0]]) for step in drawn(batches, range(12))]
    assert Counter(turns) == {0: 10, 7: 2}
    assert turns[:6].count(7) == 1


def test_processes_share_one_cluster() -> None:
    clusters, whole = labelled([40, 40])
    halves = [InClusters(PAIRS, KEYS, Shard(rank, 2), clusters) for rank in range(2)]
    for step in range(10):
        parts = [drawn(half, range(step, step + 1))[0] for half in halves]
        assert parts[0] + parts[1] == drawn(whole, range(step, step + 1))[0]
        assert len({int(clusters.labels[i]) for part in parts for i in part}) == 1


def test_an_unreadable_pair_is_replaced_from_its_own_cluster() -> None:
    clusters, batches = labelled([40, 40])

    def picky(place: int, index: int, rng: Any) -> int:
        if index % 3 == 0:
            raise OSError("gone")
        return index

    replaced = 0
    for step in range(10):
        found, unreadable = batches.draw(step, picky)
        assert len({int(clusters.labels[i]) for i in found}) == 1
        replaced += len(unreadable)
    assert replaced > 10


def test_the_file_is_read_back_and_refused_when_damaged(tmp_path: Path) -> None:
    clusters, _ = labelled([40, 40])
    path = tmp_path / "c.safetensors"
    save_clusters(path, clusters)
    again = load_clusters(path)
    assert np.array_equal(again.labels, clusters.labels)
    assert (again.count, again.fingerprint, again.models) == (100, clusters.fingerprint, ("a",))
    assert again.digest == clusters.digest
    for damaged in (path.read_bytes()[:-9], b"", b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"clusters: .*c\.safetensors cannot be read .*cluster again"):
            load_clusters(path)
    save_clusters(path, replace(clusters, count=7))
    with pytest.raises(TrainingError, match="from -2 to below 7"):
        load_clusters(path)


def test_labels_are_bound_to_pairs(tmp_path: Path) -> None:
    clusters, _ = labelled([40, 40])
    path = tmp_path / "c.safetensors"
    save_clusters(path, clusters)
    recipe = replace(PAIRS, batches="clustered", clusters=str(path))
    source = start(recipe)
    batches = ClusteredPairs(recipe, source, Shard())
    assert batches.batch(0).pixels.shape == (8, 3, 16, 16)
    save_clusters(path, replace(clusters, labels=np.where(clusters.labels == 7, 8, clusters.labels)))
    assert ClusteredPairs(recipe, source, Shard()).fingerprint != batches.fingerprint  # as other data
    for changes, message in [
        ({"clusters": ""}, r"clusters: not set\. batches=clustered takes each batch from one cluster"),
        ({"clusters": str(tmp_path / "no")}, "cannot be read"),
        ({"data": "shapes:151"}, r"divides other pairs \(150\) than the data holds \(151\)"),
        ({"validation_share": 0.1}, "more, which were held out then. Set validation_share as it was"),
        ({"batch_size": 41}, "clusters: the largest of 2 has 40 pairs, fewer than batch_size 41"),
    ]:
        with pytest.raises(TrainingError, match=message):
            ClusteredPairs(replace(recipe, **changes), source, Shard())  # type: ignore[arg-type]
    save_clusters(path, replace(clusters, fingerprint="other"))
    with pytest.raises(TrainingError, match="divides other pairs"):
        ClusteredPairs(recipe, source, Shard())
