"""Batches of pairs: a view of each picture, and one of its captions."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.errors import InputError, TrainingError
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.training.batch import PairBatch
from edgeclip.models.training.data import Pairs, open_pairs
from edgeclip.models.training.data.augment import augmented
from edgeclip.models.training.data.shuffled import Shuffled
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.objectives import Objectives
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.validation import retrieval
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.text import TextEncoder

log = logging.getLogger(__name__)


class ShuffledPairs:
    """The training pairs in shuffled epochs; the held-out ones are scored by retrieval."""

    def __init__(self, recipe: Recipe, source: Source, shard: Shard) -> None:
        self._pairs = self._open(recipe)
        self.shuffled = self._shuffle(recipe, self._pairs.keys, shard)
        self.fingerprint = self.shuffled.fingerprint
        self._augmentation, self._templates = recipe.augmentation, recipe.templates
        self._two_views = "image_b" in Objectives(recipe.objectives).wanted
        if source.preprocessing is None or source.text is None:
            raise TrainingError(f"{source.spec}: training on pairs needs an image tower and a text tower.")
        self._spec = source.preprocessing
        self._prepare = Preprocessor(source.preprocessing)
        self._text = TextEncoder(Tokenizer.from_str(source.tokenizer_json.decode()), source.text)

    @property
    def keys(self) -> Sequence[str]:
        """Of all pairs, held-out ones too."""
        return self._pairs.keys

    def _open(self, recipe: Recipe) -> Pairs:
        return open_pairs(recipe.data, recipe.data_format)

    def _shuffle(self, recipe: Recipe, keys: Sequence[str], shard: Shard) -> Shuffled:
        return Shuffled(recipe, keys, shard)

    def batch(self, step: int) -> PairBatch:
        """This process's part of the step's batch.

        Raises:
            TrainingError: no readable pair could be found.
        """
        rows, unreadable = self.shuffled.draw(
            step, lambda place, index, rng: self._row(index, rng, self._spec)
        )
        views, captions, groups = zip(*rows, strict=True)
        return PairBatch(
            pixels=stack([view[0] for view in views]),
            input_ids=self._ids(captions),
            groups=torch.tensor(groups),
            second=stack([view[1] for view in views]) if self._two_views else None,
            unreadable=unreadable,
        )

    def validate(self, model: DualEncoder, device: torch.device) -> dict[str, float]:
        """Retrieval among the held-out pairs; {} when nothing is held out or nothing of it can be read."""
        return retrieval(model, self._validation(), device)

    def _validation(self) -> Iterator[PairBatch]:
        for rows in self._held_out_rows(64, self._prepare):
            yield self._plain(rows)

    def _plain(self, rows: Sequence[tuple[NDArray[np.float32], str]]) -> PairBatch:
        views, captions = zip(*rows, strict=True)
        groups = torch.tensor([group_of(caption) for caption in captions])
        return PairBatch(stack(views), self._ids(self._first_template(captions)), groups)

    def plain(self, indices: Sequence[int]) -> tuple[list[int], PairBatch | None]:
        """What an index would hold of these pairs: the runtime's picture and the first caption.

        Returns:
            Those that can be read, in order, and the batch of them; None where none can.
        """
        rows = {}
        for index in indices:
            try:
                rows[index] = self._plain_row(index, self._prepare)
            except (InputError, OSError) as error:
                log.debug("unreadable: %s", error)
        return list(rows), self._plain(list(rows.values())) if rows else None

    def _plain_row(self, index: int, prepare: Preprocessor) -> tuple[NDArray[np.float32], str]:
        picture, texts = self._pairs.read(index)
        view = np.empty((3, *prepare.spec.size), np.float32)
        prepare.into(picture, view, where=self._pairs.keys[index])
        return view, texts[0]

    def _held_out_rows(
        self, size: int, prepare: Preprocessor
    ) -> Iterator[list[tuple[NDArray[np.float32], str]]]:
        """(the runtime's picture, first caption) of every held-out pair that can be read, `size` at a time; the last may be fewer."""
        rows: list[tuple[NDArray[np.float32], str]] = []
        for index in self.shuffled.held_out:
            try:
                rows.append(self._plain_row(int(index), prepare))
            except (InputError, OSError) as error:
                log.warning("left out of validation: %s", error)
                continue
            if len(rows) == size:
                yield rows
                rows = []
        if rows:
            yield rows

    def _row(
        self, index: int, rng: Generator, spec: Preprocessing
    ) -> tuple[list[NDArray[np.float32]], str, int]:
        """(views, caption, group) of a pair."""
        picture, captions = self._pairs.read(index)
        caption = captions[int(rng.integers(len(captions)))]
        text = self._in_template(caption, rng)
        views = [
            augmented(picture, spec, self._augmentation, rng, self._pairs.keys[index])
            for _ in range(1 + self._two_views)
        ]
        return views, text, group_of(caption)

    def _in_template(self, text: str, rng: Generator) -> str:
        return self._templates[int(rng.integers(len(self._templates)))].replace("{}", text)

    def _first_template(self, texts: Sequence[str]) -> list[str]:
        return [self._templates[0].replace("{}", text) for text in texts]

    def _ids(self, texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(self._text.encode(texts).input_ids).long()


def group_of(caption: str) -> int:
    """A number that pairs with the same caption share."""
    digest = hashlib.sha256(" ".join(caption.lower().split()).encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def stack(views: Sequence[NDArray[np.float32]]) -> Tensor:
    """N (3, H, W) arrays -> (N, 3, H, W)."""
    return torch.from_numpy(np.stack(views))
