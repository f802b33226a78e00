"""Batches with a teacher's embeddings beside them, read from reinforced data: the picture is made again, the teacher is not run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from edgeclip.errors import TrainingError
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.training.data.pairs import ShuffledPairs, stack
from edgeclip.models.training.data.shuffled import Shuffled, fingerprint_of
from edgeclip.models.training.data.stored import Stored
from edgeclip.models.training.data.views import view
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.encode_reinforced import ReinforcedBatch
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.reinforced import (
    Plan,
    held_out,
    kept,
    open_reinforced,
    projected,
    projection,
    teacher_score,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taught:
    """One row of a batch."""

    pixels: NDArray[np.float32]  # (3, H, W)
    text: str
    group: int
    teacher_image: NDArray[Any]  # (D,) as it is stored
    teacher_text: NDArray[Any]


class StoredPairs(Shuffled):
    """Epochs of the training pairs that have rows, and the held-out ones that have.

    Raises:
        TrainingError: too few of them for a batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        keys: Sequence[str],
        shard: Shard,
        there: NDArray[np.bool_],
        held: NDArray[np.int64],
    ) -> None:
        super().__init__(recipe, keys, shard)
        self.train = self.train[there[self.train]]
        self.held_out = held[: recipe.validation_pairs]
        if len(self.train) < recipe.batch_size:
            raise TrainingError(
                f"{recipe.teacher_data}: {len(self.train)} training pairs have a teacher's embeddings, fewer than batch_size "
                f"{recipe.batch_size}."
            )


class ReinforcedPairs(ShuffledPairs):
    """Training pairs, each step's views and texts drawn among those that the teacher has seen; held-out ones are scored by retrieval."""

    batches = "reinforced"

    def __init__(self, recipe: Recipe, source: Source, shard: Shard) -> None:
        if isinstance(recipe.encode, str) and recipe.encode != "reinforced":
            raise TrainingError(
                f"encode: {recipe.encode} leaves the teacher's embeddings aside. Set encode=reinforced."
            )
        self._folder, self._manifest = open_reinforced(recipe.teacher_data)
        self._plan = self._manifest.plan
        check_plan(self._plan, recipe, self.batches)
        self._stored = Stored(self._folder, self._manifest.shards, self._plan.pairs)
        super().__init__(recipe, source, shard)
        self._columns = projection(self._folder, self._manifest, source.embedding_dim)
        if source.embedding_dim < self._plan.dim:
            log.info(
                "the teacher's %d values become the student's %d: %.1f %% of their squared length is kept",
                self._plan.dim,
                source.embedding_dim,
                100 * kept(self._folder, self._manifest, source.embedding_dim),
            )
        self._scale = torch.tensor(self._plan.scale, dtype=torch.float32)
        self._validation_pairs = recipe.validation_pairs

    def _shuffle(self, recipe: Recipe, keys: Sequence[str], shard: Shard) -> Shuffled:
        if fingerprint_of(keys) != self._plan.fingerprint:
            raise TrainingError(
                f"teacher_data: {self._folder} was made from other pairs ({self._plan.pairs}) than data {recipe.data} holds "
                f"({len(keys)}). Name the data that it was made from, or reinforce this."
            )
        held = held_out(self._folder, self._manifest)[0]
        found = StoredPairs(recipe, keys, shard, self._stored.there, held)
        found.fingerprint = self._manifest.identity
        return found

    def batch(self, step: int) -> ReinforcedBatch:  # type: ignore[override]
        """This process's part of the step's batch.

        Raises:
            TrainingError: no readable pair could be found, or a shard is damaged.
        """
        rows, unreadable = self.shuffled.draw(step, lambda place, index, rng: self._taught(index, rng))
        return ReinforcedBatch(
            pixels=stack([row.pixels for row in rows]),
            input_ids=self._ids([row.text for row in rows]),
            groups=self._groups(rows),
            teacher_image=torch.from_numpy(
                projected(np.stack([row.teacher_image for row in rows]), self._columns)
            ),
            teacher_text=torch.from_numpy(
                projected(np.stack([row.teacher_text for row in rows]), self._columns)
            ),
            teacher_scale=self._scale,
            unreadable=unreadable,
        )

    def validate(self, model: DualEncoder, device: torch.device) -> dict[str, float]:
        """Retrieval among the held-out pairs, and as `teacher_score` what the teacher reaches on them; {} when nothing is held out."""
        scores = super().validate(model, device)
        if not scores or self._teacher_score is None:
            return scores
        return {**scores, "teacher_score": self._teacher_score}

    @cached_property
    def _teacher_score(self) -> float | None:
        return teacher_score(self._folder, self._validation_pairs)

    def _taught(self, index: int, rng: Generator) -> Taught:
        number = int(rng.integers(self._plan.views))
        text, group, row = self._stored.text(index, rng)
        return Taught(self._seen(index, number), text, group, self._stored.image(index, number), row)

    def _seen(self, index: int, number: int) -> NDArray[np.float32]:
        """The view as the student sees it."""
        picture = self._pairs.read(index)[0]
        plan = self._plan
        return view(picture, self._spec, plan.augmentation, plan.seed, self._pairs.keys[index], number)

    def _groups(self, rows: Sequence[Taught]) -> Tensor | None:
        return torch.tensor([row.group for row in rows])


def check_plan(plan: Plan, recipe: Recipe, batches: str) -> None:
    """Refuse a recipe whose pictures, texts or held-out pairs are not those that the teacher saw.

    Raises:
        TrainingError: names the setting, both values, and what to do.
    """
    where = f"teacher_data: {recipe.teacher_data}"
    if bool(plan.bank) != (batches == "unlabelled"):
        other = "unlabelled" if plan.bank else "reinforced"
        raise TrainingError(
            f"{where} holds {'pictures without texts' if plan.bank else 'pairs'}. Set batches={other}."
        )
    same = {
        f"augmentation.{name}": (value, getattr(recipe.augmentation, name))
        for name, value in vars(plan.augmentation).items()
    }
    same["templates"] = plan.templates, recipe.templates
    same["validation_share"] = plan.validation_share, recipe.validation_share
    for name, (was, now) in same.items():
        if was != now:
            raise TrainingError(
                f"{where} was made with {name} = {was!r}, the recipe has {now!r}: a student is shown what its teacher saw. "
                "Set it alike, or reinforce again elsewhere."
            )
    if recipe.validation_pairs > plan.validation_pairs:
        raise TrainingError(
            f"{where} holds out {plan.validation_pairs} pairs at most, the recipe's validation_pairs is {recipe.validation_pairs}. Set fewer."
        )
