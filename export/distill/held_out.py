"""The held-out pairs, and what teachers and students make of them, all by the same means: the runtime's picture and the first caption."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeclip.errors import InputError
from edgeclip.export.distill.teachers import Teachers, Vectors
from edgeclip.models.importance import PairSamples
from edgeclip.models.source import Source
from edgeclip.models.training.data import Pairs, open_pairs
from edgeclip.models.training.data.captions import text_bank
from edgeclip.models.training.data.pairs import group_of
from edgeclip.models.training.data.pictures import open_pictures
from edgeclip.models.training.data.shuffled import split_by_hash
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.validation import recall_at_1
from edgeclip.runtime.images import Preprocessor
from edgeclip.runtime.text import TextEncoder

AT_ONCE = 16  # pictures
MEASURED = 64  # pairs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """A recipe's data, opened: which pairs are trained on and which are kept for scores."""

    pairs: Pairs
    bank: tuple[str, ...]  # texts of pictures that have none
    template: str
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """What one model makes of the held-out pairs."""

    image: Vectors  # (N, D)
    text: Vectors  # (M, D): of each pair (M = N), or of the bank's texts

    @property
    def nearest(self) -> NDArray[np.int64]:
        """(N,) the text that each picture is closest to."""
        found: NDArray[np.int64] = (self.image @ self.text.T).argmax(axis=1)
        return found


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs that could be read, with what every model makes of them."""

    index: tuple[int, ...]  # in the data
    texts: tuple[str, ...]  # (N,) of each pair, or the bank's
    groups: NDArray[np.int64] | None  # (N,) pairs of one group say the same; None: pictures without texts
    seen: tuple[Seen, ...]  # of each model

    def scores(self, number: int) -> dict[str, float]:
        """Retrieval of model `number`, 0-1; of pictures without texts the share that it names as the first model does."""
        own = self.seen[number]
        if self.groups is None:
            return {"agreement": float((own.nearest == self.seen[0].nearest).mean())}
        image, text, groups = (torch.from_numpy(rows) for rows in (own.image, own.text, self.groups))
        there, back = recall_at_1(image, text, groups), recall_at_1(text, image, groups)
        return {"score": (there + back) / 2, "image_to_text_r1": there, "text_to_image_r1": back}

    def right(self, number: int) -> NDArray[np.bool_]:
        """(N,) whether model `number` names each picture by its own caption; of pictures without texts as the first model does."""
        nearest = self.seen[number].nearest
        truth = self.seen[0].nearest if self.groups is None else self.groups
        found: NDArray[np.bool_] = (nearest if self.groups is None else self.groups[nearest]) == truth
        return found


def open_data(recipe: Recipe) -> Data:
    """Open what the recipe names.

    Raises:
        TrainingError: nothing is there, or no format fits.
    """
    bank = text_bank(Path(recipe.text_bank)) if recipe.text_bank else ()
    pairs: Pairs = open_pictures(recipe.data) if bank else open_pairs(recipe.data, recipe.data_format)
    train, held_out = split_by_hash(pairs.keys, recipe.validation_share)
    return Data(pairs, bank, recipe.templates[0], train, held_out[: recipe.validation_pairs])


def pair_samples(source: Source, data: Data) -> PairSamples | None:
    """Some training pairs as a model takes them, for students that are made by measuring; None where pictures have no texts.

    Raises:
        InputError: fewer than two can be read.
    """
    if data.bank or source.preprocessing is None or source.text is None:
        return None
    prepare = Preprocessor(source.preprocessing)
    encoder = TextEncoder(Tokenizer.from_str(source.tokenizer_json.decode()), source.text)
    views: list[NDArray[np.float32]] = []
    texts: list[str] = []
    for i in map(int, data.train[: 2 * MEASURED]):
        slot = np.empty((3, *source.preprocessing.size), np.float32)
        with contextlib.suppress(InputError, OSError):
            picture, captions = data.pairs.read(i)
            prepare.into(picture, slot, where=data.pairs.keys[i])
            views.append(slot)
            texts.append(data.template.replace("{}", captions[0]))
        if len(views) == MEASURED:
            break
    if len(views) < 2:
        raise InputError(
            f"{data.pairs.keys[0]}: unreadable, and so are the pairs behind it. Is the data still there?"
        )
    ids = torch.from_numpy(encoder.encode(texts).input_ids).long()
    return PairSamples(torch.from_numpy(np.stack(views)), ids)


def look(models: Sequence[Teachers], data: Data, most: int = 0) -> HeldOut:
    """Embed the held-out pairs with every model, each picture decoded once for each size.

    Args:
        most: only the first so many; 0 = all.
    """
    specs = list(dict.fromkeys(spec for model in models for spec in model.specs))
    prepare = [Preprocessor(spec) for spec in specs]
    index: list[int] = []
    captions: list[str] = []
    rows: list[list[Vectors]] = [[] for _ in models]
    chosen = data.held_out[: most or None]
    for first in range(0, len(chosen), AT_ONCE):
        views: list[list[NDArray[np.float32]]] = [[] for _ in specs]
        for i in map(int, chosen[first : first + AT_ONCE]):
            try:
                picture, texts = data.pairs.read(i)
                made = [np.empty((3, *spec.size), np.float32) for spec in specs]
                for one, slot in zip(prepare, made, strict=True):
                    one.into(picture, slot, where=data.pairs.keys[i])
            except (InputError, OSError) as error:
                log.debug("left out: %s", error)
                continue
            index.append(i)
            captions += texts[:1]
            for group, view in zip(views, made, strict=True):
                group.append(view)
        if not views[0]:
            continue
        by_spec = {spec: np.stack(group) for spec, group in zip(specs, views, strict=True)}
        for model, found in zip(models, rows, strict=True):
            found.append(model.images([by_spec[spec] for spec in model.specs]))
    texts = data.bank or tuple(data.template.replace("{}", caption) for caption in captions)
    seen = [
        Seen(np.concatenate([np.empty((0, model.dim), np.float32), *found]), model.texts(list(texts)))
        for model, found in zip(models, rows, strict=True)
    ]
    groups = None if data.bank else np.array([group_of(caption) for caption in captions], np.int64)
    return HeldOut(tuple(index), tuple(texts), groups, tuple(seen))
