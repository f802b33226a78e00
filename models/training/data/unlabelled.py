"""Pictures that nobody described, and a bank of texts: the student learns where the teacher puts both, and how alike it holds them.

A batch has as many texts of the bank as pictures. Half of them, by dice, are drawn from the teacher's shares for the picture of their
row, so that there is something to tell apart; half from the whole bank, so that every text is learnt. Row i of pictures and texts are no
pair: objectives that take them for one are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch.nn import functional as F

from edgeclip.errors import InputError, TrainingError
from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.training.data import Pairs
from edgeclip.models.training.data.captions import digest_of, text_bank
from edgeclip.models.training.data.pairs import stack
from edgeclip.models.training.data.pictures import open_pictures
from edgeclip.models.training.data.reinforced import ReinforcedPairs, Taught
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.reinforced import bank, held_out, projected

# What may be asked: each compares with the teacher, row by row or all with all.
UNPAIRED = (
    "feature_mse",
    "feature_cosine",
    "affinity",
    "contrastive_relation",
    "relational",
    "load_balance",
    "router_z",
)
AT_ONCE = 64  # pictures or texts embedded for a score

log = logging.getLogger(__name__)


class UnlabelledPictures(ReinforcedPairs):
    """Pictures in shuffled epochs with texts of the bank; the held-out ones are scored by whether the student names them as the teacher."""

    batches = "unlabelled"

    def __init__(self, recipe: Recipe, source: Source, shard: Shard) -> None:
        for entry, _ in recipe.objectives:
            if isinstance(entry, str) and entry not in UNPAIRED:
                raise TrainingError(
                    f"objectives: {entry} takes row i of pictures and texts for a pair, and pictures without texts have none. "
                    f"There are {', '.join(UNPAIRED)}."
                )
        super().__init__(recipe, source, shard)
        self._bank, self._bank_rows = bank(self._folder, self._manifest)
        if recipe.text_bank and digest_of(text_bank(Path(recipe.text_bank))) != self._plan.bank:
            raise TrainingError(
                f"text_bank: {recipe.text_bank} holds other texts than {self._folder} was made with. Take it out, or reinforce again."
            )

    def _open(self, recipe: Recipe) -> Pairs:
        return open_pictures(recipe.data)

    def validate(self, model: DualEncoder, device: torch.device) -> dict[str, float]:
        """Share of held-out pictures whose nearest text of the bank is the teacher's, as `score`, and `pictures`; {} without any."""
        index, image, *_ = held_out(self._folder, self._manifest)
        held = dict(zip(index.tolist(), (image @ self._bank_rows.T).argmax(axis=1).tolist(), strict=True))
        return self._agreement(model, held, device)

    @torch.no_grad()
    def _agreement(self, model: DualEncoder, held: dict[int, int], device: torch.device) -> dict[str, float]:
        training = model.training
        model.eval()
        ids = self._ids(self._bank)
        texts = torch.cat(
            [
                F.normalize(model.encode_text(part.to(device)).float(), dim=-1)
                for part in torch.split(ids, AT_ONCE)
            ]
        )
        hits: list[bool] = []
        for start in range(0, len(self.shuffled.held_out), AT_ONCE):
            views = self._plain_views(self.shuffled.held_out[start : start + AT_ONCE].tolist())
            if views:
                rows = F.normalize(model.encode_image(stack(list(views.values())).to(device)).float(), dim=-1)
                nearest = (rows @ texts.T).argmax(dim=1).tolist()
                hits += [mine == held[index] for mine, index in zip(nearest, views, strict=True)]
        model.train(training)
        return {"score": sum(hits) / len(hits), "pictures": float(len(hits))} if hits else {}

    def _plain_views(self, indices: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """The runtime's picture of those that can be read."""
        views = {}
        for index in indices:
            view = np.empty((3, *self._spec.size), np.float32)
            try:
                self._prepare.into(self._pairs.read(index)[0], view, where=self._pairs.keys[index])
            except (InputError, OSError) as error:
                log.warning("left out of validation: %s", error)
                continue
            views[index] = view
        return views

    def _taught(self, index: int, rng: Generator) -> Taught:
        number = int(rng.integers(self._plan.views))
        row = self._stored.image(index, number)
        j = int(rng.integers(len(self._bank)))
        if rng.random() < 0.5:
            logits = self._plan.scale * (self._bank_rows @ projected(row[None], None)[0]).astype(np.float64)
            shares = np.exp(logits - logits.max())
            j = int(rng.choice(len(self._bank), p=shares / shares.sum()))
        return Taught(self._seen(index, number), self._bank[j], 0, row, self._bank_rows[j])

    def _groups(self, rows: Sequence[Taught]) -> None:
        return None
