"""The cluster of every pair of a data set, and the file that keeps it: `clusters-1.safetensors`.

One tensor, `labels` (N,) int64 in the order of the data's keys; the header holds how many clusters there may be, what tells the data from
another, and the digests of the models that divided it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from edgeclip.errors import TrainingError
from edgeclip.files import write_file
from edgeclip.models.training.data.shuffled import Shuffled

FORMAT = "edgeclip.clusters"
HELD_OUT, UNREADABLE = -1, -2  # in place of a label

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Clusters:
    """The cluster of every pair of one data set."""

    labels: Labels  # (N,) in the order of the data's keys: 0 to count - 1, HELD_OUT or UNREADABLE
    count: int  # clusters that there may be; some are empty
    fingerprint: str  # of the data's keys
    models: tuple[str, ...]  # digests of the models whose embeddings divided the pairs, the first one first

    @property
    def digest(self) -> str:
        """SHA-256 over the data's fingerprint and all labels."""
        return hashlib.sha256(self.fingerprint.encode() + self.labels.astype("<i8").tobytes()).hexdigest()

    def check(self, pairs: Shuffled, keys: Sequence[str], where: str) -> None:
        """Refuse to be used for other pairs, or for another share of held-out ones.

        Args:
            pairs: of which the training pairs need a label.
            keys: of all pairs.
            where: the labels' own name, for the error.
        Raises:
            TrainingError: the keys differ, or a training pair has no label.
        """
        if self.fingerprint != pairs.fingerprint or len(self.labels) != len(keys):
            raise TrainingError(
                f"clusters: {where} divides other pairs ({len(self.labels)}) than the data holds ({len(keys)}). "
                "Name the data that it was made from, or cluster this."
            )
        missing = pairs.train[self.labels[pairs.train] == HELD_OUT]
        if len(missing):
            raise TrainingError(
                f"clusters: {where} has no label for {keys[int(missing[0])]} and {len(missing) - 1} more, which were held out then. "
                "Set validation_share as it was."
            )

    def sizes(self) -> Labels:
        """Pairs of each cluster that is not empty, in the order of labels."""
        found: Labels = np.unique(self.labels[self.labels >= 0], return_counts=True)[1]
        return found

    def used(self, batch_size: int) -> float:
        """Share of the training pairs that an epoch of whole batches of one cluster each draws."""
        there = int((self.labels != HELD_OUT).sum())
        return float((self.sizes() // batch_size).sum() * batch_size / there) if there else 0.0


def save_clusters(path: Path, clusters: Clusters) -> None:
    """Write the file whole or not at all. Raises InputError: the place cannot be written."""
    told = {
        "format": FORMAT,
        "count": str(clusters.count),
        "fingerprint": clusters.fingerprint,
        "models": json.dumps(clusters.models),
    }
    write_file(path, save({"labels": clusters.labels}, told))


def load_clusters(path: Path) -> Clusters:
    """Read what `save_clusters` wrote.

    Raises:
        TrainingError: no such file, or it is damaged or something else.
    """
    try:
        with safe_open(path, "numpy") as stream:
            told = stream.metadata() or {}
            if told.get("format") != FORMAT:
                raise ValueError(f"not of format {FORMAT}")
            labels = stream.get_tensor("labels")
            found = Clusters(
                labels, int(told["count"]), told["fingerprint"], tuple(json.loads(told["models"]))
            )
        if (
            labels.dtype != np.int64
            or labels.ndim != 1
            or labels.min() < UNREADABLE
            or labels.max() >= found.count
        ):
            raise ValueError(f"labels are no (N,) int64 from {UNREADABLE} to below {found.count}")
        return found
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TrainingError(
            f"clusters: {path} cannot be read ({error}). Name a file that a run of clip_moe left, or delete it and cluster again."
        ) from error
