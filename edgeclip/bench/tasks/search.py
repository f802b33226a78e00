"""A text to the ten nearest of an index of unit vectors, by one flat product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import Unit, require_tower
from edgeclip.errors import InputError
from edgeclip.runtime import stages
from edgeclip.runtime.model import Model

UNIT: Unit = "text"
BEST = 10


@dataclass(frozen=True)
class Search:
    """See `edgeclip.bench.tasks.Task`."""

    model: Model
    texts: Sequence[str]
    index: NDArray[np.float32]  # (index_size, D) unit rows

    unit: Unit = UNIT

    @property
    def samples(self) -> int:
        """How many different ones queries draw from."""
        return len(self.texts)

    def query(self, samples: Sequence[int]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """(N, 10) rows of the index, nearest first, and their cosines; fewer where the index has fewer."""
        vectors = self.model.embed_texts([self.texts[i] for i in samples])
        begun = stages.begin()
        cosines = _cosines(vectors, self.index)
        best = np.argpartition(-cosines, min(BEST, cosines.shape[1]) - 1, axis=1)[:, :BEST]
        scores = np.take_along_axis(cosines, best, 1)
        order = np.argsort(-scores, axis=1, kind="stable")
        found = np.take_along_axis(best, order, 1), np.take_along_axis(scores, order, 1)
        stages.end("head", begun)
        return found


def _cosines(vectors: NDArray[np.float32], index: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, rows of the index). One query is a read of the index: OpenBLAS would spread it over all cores, whatever `threads` says, and wait
    for the last: on a busy machine 11 ms instead of 0.7 for 10,000 x 192. einsum stays on its thread.
    """
    return np.asarray(np.einsum("nd,rd->nr", vectors, index) if len(vectors) == 1 else vectors @ index.T)


def open_task(model: Model, inputs: Inputs, settings: Settings) -> Search:
    """Raises InputError for a bundle without a text tower, or for an index of no vectors."""
    require_tower(model, "text", "search")
    if settings.index_size < 1:
        raise InputError(f"index_size: expected 1 or more, got {settings.index_size}.")
    model.keep_texts(0)
    shape = settings.index_size, model.manifest.embedding_dim
    rows = np.random.default_rng(settings.seed).standard_normal(shape, np.float32)
    return Search(model, inputs.texts, rows / np.linalg.norm(rows, axis=1, keepdims=True))
