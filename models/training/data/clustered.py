"""Batches of pairs of one cluster: what names the cluster is the same for all of a batch, so that it tells nothing apart.

Source: Zhang et al. 2024 (CLIP-MoE), arXiv:2409.19291, section 3.1.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import TrainingError
from edgeclip.models.training.data.cluster_labels import Clusters, load_clusters
from edgeclip.models.training.data.pairs import ShuffledPairs
from edgeclip.models.training.data.shuffled import Shuffled
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.recipe import Recipe

log = logging.getLogger(__name__)


class InClusters(Shuffled):
    """Epochs in which every batch is of one cluster.

    Each cluster is shuffled and cut into batches, whose remainder waits for another epoch. A cluster's batches are spread evenly over the
    epoch: clusters of like size take turns. All processes of a run share each batch, so its parts are of one cluster too.
    """

    def __init__(self, recipe: Recipe, keys: Sequence[str], shard: Shard, clusters: Clusters) -> None:
        super().__init__(recipe, keys, shard)
        clusters.check(self, keys, recipe.clusters)
        self.labels = clusters.labels
        own = self.labels[self.train]
        # pairs of each cluster; those that could not be read when it was made are of none
        self._members = [self.train[own == label] for label in np.unique(own[own >= 0])]
        self._counts = np.array([len(members) // self._size for members in self._members], np.int64)
        if not self._counts.any():
            largest = max((len(members) for members in self._members), default=0)
            raise TrainingError(
                f"clusters: the largest of {len(self._members)} has {largest} pairs, fewer than batch_size {self._size}. "
                "Set a smaller batch_size or fewer clusters, or bring more pairs."
            )
        self.fingerprint = hashlib.sha256(f"{self.fingerprint} {clusters.digest}".encode()).hexdigest()
        if self.used < 0.5:
            log.warning(
                "%s: a batch of %d takes pairs of one cluster, and only %.0f%% of them lie in clusters so large: fewer clusters or a smaller "
                "batch use more",
                recipe.clusters,
                self._size,
                100 * self.used,
            )

    @property
    def steps(self) -> int:
        """Batches of one epoch."""
        return int(self._counts.sum())

    @property
    def used(self) -> float:
        """Share of the training pairs that one epoch draws."""
        return self.steps * self._size / len(self.train)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        random = np.random.default_rng((self._seed, epoch))
        parts = [random.permutation(members) for members in self._members]
        turns = random.permutation(len(parts))  # who goes first where two are as far
        batches = sorted(
            ((i + 0.5) / count, int(turns[cluster]), cluster, i)
            for cluster, count in enumerate(self._counts.tolist())
            for i in range(count)
        )
        order: NDArray[np.int64] = np.concatenate(
            [parts[c][i * self._size : (i + 1) * self._size] for _, _, c, i in batches]
        )
        return order

    def _like(self, index: int) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.train[self.labels[self.train] == self.labels[index]]
        return found


class ClusteredPairs(ShuffledPairs):
    """Training pairs in batches of one cluster each; the held-out ones are scored as by `ShuffledPairs`."""

    shuffled: InClusters

    def _shuffle(self, recipe: Recipe, keys: Sequence[str], shard: Shard) -> InClusters:
        if not recipe.clusters:
            raise TrainingError(
                "clusters: not set. batches=clustered takes each batch from one cluster: name the file of labels, "
                "e.g. runs/moe/clusters-1.safetensors, or run the recipe clip_moe, which makes it."
            )
        return InClusters(recipe, keys, shard, load_clusters(Path(recipe.clusters)))
