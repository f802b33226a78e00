"""Batches of pairs in an order that the seed alone decides, so that any step's batch can be made at any time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from edgeclip.errors import InputError, TrainingError
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.training.batch import PairBatch
from edgeclip.models.training.data import open_pairs
from edgeclip.models.training.data.augment import augmented
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.objectives import Objectives
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.validation import retrieval
from edgeclip.runtime.images import Picture, Preprocessor
from edgeclip.runtime.text import TextEncoder

TRIES = 20  # unreadable pairs in a row, after which the data is held to be gone

log = logging.getLogger(__name__)


class ShuffledPairs:
    """Epochs of all training pairs, each in its own order. What does not fill a batch waits for another epoch's order."""

    def __init__(self, recipe: Recipe, source: Source, shard: Shard) -> None:
        self._pairs = open_pairs(recipe.data, recipe.data_format)
        self._train, held_out = split_by_hash(self._pairs.keys, recipe.validation_share)
        self._held_out = held_out[: recipe.validation_pairs]
        self._size, self._seed, self._shard = recipe.batch_size, recipe.seed, shard
        self._augmentation, self._templates = recipe.augmentation, recipe.templates
        self._two_views = "image_b" in Objectives(recipe.objectives).wanted
        if source.preprocessing is None or source.text is None:
            raise TrainingError(f"{source.spec}: training on pairs needs an image tower and a text tower.")
        self._spec = source.preprocessing
        self._prepare = Preprocessor(source.preprocessing)
        self._text = TextEncoder(Tokenizer.from_str(source.tokenizer_json.decode()), source.text)
        if len(self._train) < self._size:
            raise TrainingError(
                f"{recipe.data}: {len(self._train)} training pairs ({len(held_out)} held out), fewer than batch_size {self._size}."
            )
        self.fingerprint = hashlib.sha256("\n".join(self._pairs.keys).encode(errors="replace")).hexdigest()
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def batch(self, step: int) -> PairBatch:
        """This process's part of the step's batch.

        Raises:
            TrainingError: no readable pair could be found.
        """
        epoch, place = divmod(step, len(self._train) // self._size)
        part = self._size // self._shard.world
        first = place * self._size + self._shard.rank * part
        rows = [self._row(step, first + i, int(self._order(epoch)[first + i])) for i in range(part)]
        views, captions, groups, unreadable = zip(*rows, strict=True)
        return PairBatch(
            pixels=_stack([view[0] for view in views]),
            input_ids=self._ids(captions),
            groups=torch.tensor(groups),
            second=_stack([view[1] for view in views]) if self._two_views else None,
            unreadable=tuple(key for keys in unreadable for key in keys),
        )

    def validate(self, model: DualEncoder, device: torch.device) -> dict[str, float]:
        """Retrieval among the held-out pairs; {} when nothing is held out or nothing of it can be read."""
        return retrieval(model, self._validation(), device)

    def _validation(self) -> Iterator[PairBatch]:
        for start in range(0, len(self._held_out), 64):
            views, captions = [], []
            for index in self._held_out[start : start + 64]:
                try:
                    picture, texts = self._pairs.read(int(index))
                    view = np.empty((3, *self._spec.size), np.float32)
                    self._prepare.into(picture, view, where=self._pairs.keys[index])
                except (InputError, OSError) as error:
                    log.warning("left out of validation: %s", error)
                    continue
                views.append(view)
                captions.append(texts[0])
            if views:
                groups = torch.tensor([_group(caption) for caption in captions])
                yield PairBatch(
                    _stack(views), self._ids([self._templates[0].replace("{}", c) for c in captions]), groups
                )

    def _row(
        self, step: int, place: int, index: int
    ) -> tuple[list[NDArray[np.float32]], str, int, list[str]]:
        """(views, caption, group, keys that could not be read): a pair, or the replacement that its place's dice choose."""
        unreadable: list[str] = []
        for attempt in range(TRIES):
            rng = np.random.default_rng((self._seed, step, place, attempt))
            if attempt:
                index = int(rng.choice(self._train))
            try:
                picture, captions = self._pairs.read(index)
                caption = captions[int(rng.integers(len(captions)))]
                text = self._templates[int(rng.integers(len(self._templates)))].replace("{}", caption)
                return self._views(picture, index, rng), text, _group(caption), unreadable
            except (InputError, OSError) as error:
                log.debug("unreadable: %s", error)
                unreadable.append(self._pairs.keys[index])
        raise TrainingError(
            f"{unreadable[0]}: unreadable, and so were {TRIES - 1} pairs drawn in its place. Is the data still there?"
        )

    def _views(self, picture: Picture, index: int, rng: Generator) -> list[NDArray[np.float32]]:
        where = self._pairs.keys[index]
        return [
            augmented(picture, self._spec, self._augmentation, rng, where) for _ in range(1 + self._two_views)
        ]

    def _ids(self, texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(self._text.encode(texts).input_ids).long()

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, epoch)).permutation(self._train)


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


def _group(caption: str) -> int:
    """A number that pairs with the same caption share."""
    digest = hashlib.sha256(" ".join(caption.lower().split()).encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _stack(views: Sequence[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(views))
