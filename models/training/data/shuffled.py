"""Which pair stands at which place of which step: the seed alone decides, so that any step's batch can be made at any time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edgeclip.errors import InputError, TrainingError
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.recipe import Recipe

TRIES = 20  # unreadable pairs in a row, after which the data is held to be gone

T = TypeVar("T")

log = logging.getLogger(__name__)


class Shuffled:
    """Epochs of all training pairs, each in its own order. What does not fill a batch waits for another epoch's order."""

    def __init__(self, recipe: Recipe, keys: Sequence[str], shard: Shard) -> None:
        self._keys, self._size, self._seed, self._shard = keys, recipe.batch_size, recipe.seed, shard
        self.train, held_out = split_by_hash(keys, recipe.validation_share)
        self.held_out = held_out[: recipe.validation_pairs]
        if len(self.train) < self._size:
            raise TrainingError(
                f"{recipe.data}: {len(self.train)} training pairs ({len(held_out)} held out), fewer than batch_size {self._size}. "
                f"Bring more pairs, or set batch_size to {max(2, len(self.train))} or less."
            )
        self.fingerprint = fingerprint_of(keys)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    @property
    def steps(self) -> int:
        """Batches of one epoch."""
        return len(self.train) // self._size

    @property
    def part(self) -> int:
        """Pairs of each batch that are this process's."""
        return self._size // self._shard.world

    def draw(self, step: int, make: Callable[[int, int, Generator], T]) -> tuple[list[T], tuple[str, ...]]:
        """This process's part of the step's batch.

        Args:
            make: (place in the part, index of the pair, dice) -> what is made of it; may raise OSError or InputError, and is then
                called again with another pair and other dice.
        Returns:
            What was made, in order, and the keys of pairs that could not be read and were replaced.
        Raises:
            TrainingError: no readable pair could be found.
        """
        unreadable: list[str] = []
        made = [self._make(step, place, make, unreadable) for place in range(self.part)]
        return made, tuple(unreadable)

    def _make(
        self, step: int, place: int, make: Callable[[int, int, Generator], T], unreadable: list[str]
    ) -> T:
        epoch, batch = divmod(step, self.steps)
        at = batch * self._size + self._shard.rank * self.part + place  # in the epoch's order
        index, before = int(self._order(epoch)[at]), len(unreadable)
        for attempt in range(TRIES):
            rng = np.random.default_rng((self._seed, step, at, attempt))
            if attempt:
                index = int(rng.choice(self._like(index)))
            try:
                return make(place, index, rng)
            except (InputError, OSError) as error:
                log.debug("unreadable: %s", error)
                unreadable.append(self._keys[index])
        raise TrainingError(
            f"{unreadable[before]}: unreadable, and so were {TRIES - 1} pairs drawn in its place. Is the data still there?"
        )

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's order, batch after batch; what stands behind `steps` batches waits."""
        return np.random.default_rng((self._seed, epoch)).permutation(self.train)

    def _like(self, index: int) -> NDArray[np.int64]:
        """The pairs of which one may stand in for an unreadable one."""
        return self.train


def fingerprint_of(keys: Sequence[str]) -> str:
    """What tells one set of pairs from another, wherever it lies."""
    return hashlib.sha256("\n".join(keys).encode(errors="replace")).hexdigest()


def split_by_hash(keys: Sequence[str], share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training, held-out) indices. A key's own hash decides, so that adding pairs moves none from one side to the other."""
    limit = int(share * 2**32)
    drawn = np.array(
        [
            int.from_bytes(hashlib.sha256(key.encode(errors="replace")).digest()[:4], "big") < limit
            for key in keys
        ]
    )
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)
