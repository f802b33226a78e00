"""nano's size at half its schedule, 32 pixels wide, taught by a larger teacher: half.py with a teacher's word beside every drawing and text.

Command:  python examples/nano/teach.py DATA runs/teacher/model runs/said
          edgeclip train examples/nano/taught.py -o runs/taught --set data=DATA --set teacher_data=runs/said --set seed=1
Hours:    0.5 on one CPU core
Score:    not measured with this teacher
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from half import RECIPE as HALF
from half import small_pictograms
from pictograms import Batch
from recipe import drawing_contrast, encode, naming, tagging
from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.source import DualEncoder, Source
from edgeclip.models.training import Recipe
from edgeclip.models.training.distributed import Shard


@dataclass(frozen=True)
class Taught:
    """A batch, and what the teacher says of it. Unit vectors."""

    batch: Batch
    pictures: Tensor  # (P, D)
    names: Tensor  # (C, D)
    scale: Tensor  # () on the teacher's cosines


class TaughtPictograms:
    """half.py's batches in the views that the teacher has seen."""

    def __init__(self, recipe: Recipe, source: Source, shard: Shard) -> None:
        folder = Path(recipe.teacher_data)
        said = json.loads((folder / "said.json").read_text())
        self._views = np.load(folder / "views.npy", mmap_mode="r")
        self._texts = np.load(folder / "texts.npy", mmap_mode="r")
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
