"""Which pairs lie together for a model: k-means on pictures and on texts, one label for both, and labels of several models in one.

A run inside such clusters must tell apart what the model before it could not: the cue that names a cluster is the same for all of it.
Source: Zhang et al. 2024 (CLIP-MoE), arXiv:2409.19291, section 3.1: multistage contrastive learning.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from edgeclip.errors import TrainingError
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.training import distributed
from edgeclip.models.training.batch import to_device
from edgeclip.models.training.data.cluster_labels import HELD_OUT, UNREADABLE, Clusters, Labels
from edgeclip.models.training.data.pairs import ShuffledPairs
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.prefetch import prefetch
from edgeclip.models.training.progress import counting
from edgeclip.runtime.kmeans import assign, kmeans, seed_centres

AT_ONCE = 64  # pairs embedded
LEARN_FROM = 131_072  # pairs that move the centres; all are then given to their nearest
STARTS = 4  # of k-means, of which the tightest is taken

Vectors = NDArray[np.float32]

log = logging.getLogger(__name__)


def divide(
    source: Source,
    pairs: ShuffledPairs,
    counts: tuple[int, int],
    *,
    before: Clusters | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    workers: int = 0,
    shard: Shard | None = None,
    progress: bool = False,
) -> Clusters:
    """Divide the training pairs by what a model makes of them, each cluster of `before` once more.

    Args:
        counts: clusters of pictures and of texts; their product is how many come of one.
        before: labels of the stages before: y becomes y * product + the new one.
        workers: threads that prepare pictures ahead.
        shard: processes share the embedding; all of them get the whole.
        progress: show a bar on stderr where that is a terminal.
    Raises:
        TrainingError: no pair can be read, an embedding is not finite, or `before` is of other data.
    """
    if before is not None:
        before.check(pairs.shuffled, pairs.keys, "the clusters of the stage before")
    image, text, readable = embed(
        source,
        pairs,
        device=device or torch.device("cpu"),
        workers=workers,
        shard=shard or Shard(),
        progress=progress,
    )
    train = pairs.shuffled.train
    if not readable.any():
        raise TrainingError(
            f"{pairs.keys[int(train[0])]}: unreadable, and so is every other pair. Is the data still there?"
        )
    if lost := int((~readable).sum()):
        log.warning(
            "%d of %d pairs cannot be read; they belong to no cluster and are left out", lost, len(train)
        )
    product = counts[0] * counts[1]
    new = group(image[readable], counts[0], seed=seed) * counts[1] + group(
        text[readable], counts[1], seed=seed
    )
    labels = np.full(len(pairs.keys), HELD_OUT, np.int64)
    labels[train] = UNREADABLE
    labels[train[readable]] = new
    if before is None:
        return Clusters(labels, product, pairs.shuffled.fingerprint, (source.digest,))
    both = (labels >= 0) & (before.labels >= 0)
    labels[both] += before.labels[both] * product
    labels[~both] = np.minimum(labels, before.labels)[~both]  # unreadable once is unreadable
    return Clusters(labels, before.count * product, before.fingerprint, (*before.models, source.digest))


def group(vectors: Vectors, k: int, *, seed: int = 0) -> Labels:
    """(N, D) unit rows -> (N,) labels below k, by spherical k-means; the same each time for one seed. Copies share a label."""
    k = min(k, len(vectors))
    random = np.random.default_rng(seed)
    some = vectors
    if len(vectors) > LEARN_FROM:
        some = vectors[np.sort(random.choice(len(vectors), LEARN_FROM, replace=False))]
    runs = [kmeans(some, seed_centres(some, k, random)) for _ in range(STARTS if k > 1 else 1)]
    centres = min(runs, key=lambda run: run[2])[0]
    return assign(vectors, centres)[0]


@torch.no_grad()
def embed(
    source: Source,
    pairs: ShuffledPairs,
    *,
    device: torch.device,
    workers: int = 0,
    shard: Shard | None = None,
    most: int | None = None,
    progress: bool = False,
) -> tuple[Vectors, Vectors, NDArray[np.bool_]]:
    """What a model makes of every training pair: the runtime's picture, and the first caption.

    Args:
        workers, shard, progress: as `divide` takes them.
        most: only the first so many of the training pairs.
    Returns:
        (N, D) image and text embeddings of unit length, in the order of `pairs.shuffled.train`, and (N,) whether the pair could be read;
        rows of others are 0.
    Raises:
        TrainingError: an embedding is not finite; names the pair.
    """
    shard = shard or Shard()
    train = pairs.shuffled.train[:most]
    places = np.arange(shard.rank, len(train), shard.world)  # this process's share
    model: DualEncoder = source.model.to(device).eval()
    rows = np.zeros((2, -(-len(train) // shard.world), source.embedding_dim), np.float32)
    parts = [places[i : i + AT_ONCE] for i in range(0, len(places), AT_ONCE)]
    read = np.zeros(rows.shape[1], np.bool_)
    made = prefetch(lambda i: pairs.plain([int(n) for n in train[parts[i]]]), 0, len(parts), workers)
    with counting("embed", len(train), progress and shard.rank == 0) as tell:
        for number, (kept, batch) in enumerate(made):
            tell(min(len(train), (number + 1) * AT_ONCE * shard.world))
            if batch is None:
                continue
            batch = to_device(batch, device)
            start = number * AT_ONCE
            own = start + np.flatnonzero(np.isin(train[parts[number]], kept))
            for tower, features in enumerate(
                (model.encode_image(batch.pixels), model.encode_text(batch.input_ids))
            ):
                found = F.normalize(features.float(), dim=-1).cpu().numpy()
                if not np.isfinite(found).all():
                    bad = kept[int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])]
                    raise TrainingError(
                        f"{pairs.keys[bad]}: {source.spec} makes an embedding of it that is not finite. "
                        "Start from another model, or from an earlier checkpoint of the stage."
                    )
                rows[tower, own] = found
            read[own] = True
    image, text, seen = (_of_all(x, device, shard)[: len(train)] for x in (*rows, read.astype(np.uint8)))
    return image, text, seen.astype(np.bool_)


def _of_all(x: NDArray[Any], device: torch.device, shard: Shard) -> NDArray[Any]:
    """(n, ...) of every process -> (world * n, ...), where row i is from process i % world."""
    if shard.world == 1:
        return x
    whole = distributed.gather(torch.from_numpy(x).to(device), shard).cpu().numpy()
    found: NDArray[Any] = whole.reshape(shard.world, *x.shape).swapaxes(0, 1).reshape(-1, *x.shape[1:])
    return found
