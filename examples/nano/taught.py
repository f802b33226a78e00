"""nano's size at half its schedule, 32 pixels wide, taught by larger teachers: half.py with their word beside every drawing and text.

Command:  python examples/nano/teach.py DATA runs/teacher/model runs/said && python examples/nano/teach.py DATA bundle:nano runs/said-nano
          edgeclip train examples/nano/taught.py -o runs/taught --set data=DATA --set teacher_data=runs/said,runs/said-nano --set seed=1
Hours:    0.5 on one CPU core
Score:    0.547 top-1 of Twemoji among 1,911 names (mean of three seeds; from scratch 0.505)
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from half import RECIPE as HALF
from half import small_pictograms
from numpy.typing import NDArray
from pictograms import Batch
from recipe import drawing_contrast, encode, naming, tagging
from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.training import Recipe
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.reinforced import principal, projected


@dataclass(frozen=True)
class Taught:
    """A batch, and what the teachers say of it. Unit vectors."""

    batch: Batch
    pictures: Tensor  # (P, D)
    names: Tensor  # (C, D)
    scale: Tensor  # () on the teachers' cosines


def together(
    pictures: list[NDArray[np.float16]], texts: list[NDArray[np.float16]], width: int
) -> list[NDArray[np.float16]]:
    """Several teachers' unit vectors of the same pictures, (..., D) each, and texts as one teacher's, (..., width): the strongest directions."""
    rows = [np.concatenate(kind, axis=-1).astype(np.float32) for kind in (pictures, texts)]
    flat = [kind.reshape(-1, kind.shape[-1]) for kind in rows]
    directions, _ = principal(kind.T @ kind for kind in flat)
    return [projected(kind, directions[:, :width]).astype(np.float16) for kind in rows]


class TaughtPictograms:
    """half.py's batches in the views that the teachers have seen."""

    def __init__(self, recipe: Recipe, source: Source, shard: Shard) -> None:
        folders = [Path(folder) for folder in recipe.teacher_data.split(",")]
        told = [json.loads((folder / "said.json").read_text()) for folder in folders]
        said = {**told[0], "scale": sum(one["scale"] for one in told) / len(told)}
        views, texts = (
            [np.load(folder / f"{kind}.npy") for folder in folders] for kind in ("views", "texts")
        )
        assert all(one["texts"] == said["texts"] and one["views"] == said["views"] for one in told)
        self._views, self._texts = (
            together(views, texts, source.embedding_dim) if len(folders) > 1 else (views[0], texts[0])
        )
        self._place = {text: i for i, text in enumerate(said["texts"])}
        self._scale = torch.tensor(said["scale"])
        self._drawings = small_pictograms(recipe, source, shard, said["views"])
        self.fingerprint = f"{self._drawings.fingerprint}, {said['views']} views"
        self.validate = self._drawings.validate

    def batch(self, step: int) -> Taught:
        """The batch of one step."""
        batch = self._drawings.batch(step)
        assert batch.views is not None
        pictures = self._views[batch.rows.numpy(), batch.views.numpy()]
        names = self._texts[[self._place[text] for text in batch.texts[0]]]
        return Taught(batch, torch.from_numpy(pictures).float(), torch.from_numpy(names).float(), self._scale)


def encode_taught(model: DualEncoder, taught: Taught) -> dict[str, Tensor]:
    """What `encode` gives, and for `edgeclip.models.training.objectives.distillation` each drawing's own name and the teacher's of both."""
    found = encode(model, taught.batch)
    return {
        **found,
        "text": found["names"][taught.batch.target],
        "teacher_image": taught.pictures,
        "teacher_text": taught.names[taught.batch.target],
        "teacher_names": taught.names,
        "teacher_scale": taught.scale,
    }


def naming_alike(
    image: Tensor, names: Tensor, teacher_image: Tensor, teacher_names: Tensor, scale: Tensor, teacher_scale: Tensor
) -> Tensor:  # fmt: skip
    """Give each candidate name the share that the teacher gives it: Kullback-Leibler distance in nats, 0 where all are equal."""
    own = (scale * image @ names.T).log_softmax(dim=-1)
    wanted = (teacher_scale * teacher_image @ teacher_names.T).log_softmax(dim=-1)
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True)


RECIPE = replace(
    HALF,
    name="taught",
    batches=TaughtPictograms,
    encode=encode_taught,
    objectives=(
        (naming, 1.0),
        (tagging, 0.5),
        (drawing_contrast, 0.5),
        ("feature_mse", 4.0),
        (naming_alike, 1.0),
    ),
)
