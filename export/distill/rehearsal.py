"""A dry run: a sample of the pairs goes the whole way, through teachers and shards to one training step, and nothing of it is kept."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeclip.errors import InputError
from edgeclip.export.distill.held_out import Data
from edgeclip.export.distill.reinforce import reinforce
from edgeclip.export.distill.settings import DistillSettings, Folder, placed
from edgeclip.export.distill.teachers import Teachers
from edgeclip.models.source import Source
from edgeclip.models.training import rehearse
from edgeclip.models.training.checkpoint import write_source
from edgeclip.runtime.images import decode
from edgeclip.runtime.images.decode import Picture


def rehearse_distillation(
    teachers: Teachers, student: Source, data: Data, settings: DistillSettings
) -> dict[str, Any]:
    """Reinforce as many pairs as a batch has, and train one step on them.

    Returns:
        "reinforced": pairs, views, and bytes and seconds that all of them would take, worked out from the sample; "step": its record.
    Raises:
        TrainingError: what a run would raise.
    """
    recipe = settings.recipe
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        location, count = _sample(data, root / "data", recipe.batch_size)
        small = replace(
            settings, recipe=replace(recipe, data_format="auto", validation_share=0.0), captions=""
        )  # nothing of the sample is held out
        began = time.perf_counter()
        made = reinforce(teachers, location, root / "reinforced", small.reinforced_by(), progress=False)
        each = (time.perf_counter() - began) / count
        write_source(root / "start", student)
        step = rehearse(placed(replace(small.recipe, data=location), Folder(root)))
    return {
        "reinforced": {
            "pairs": len(data.train),
            "held_out": len(data.held_out),
            "views": settings.views,
            "bytes_a_pair": round(made.bytes_a_pair, 1),
            "bytes": round(made.bytes_a_pair * len(data.train)),
            "seconds": round(each * len(data.pairs.keys), 1),
        },
        "step": step,
    }


def _sample(data: Data, folder: Path, count: int) -> tuple[str, int]:
    """The first training pairs that can be read, as data of its own."""
    kept = keep_pictures(data, data.train, folder, count)
    if data.bank:
        return str(folder), len(kept)
    lines = [json.dumps({"image": name, "captions": captions}) for name, captions in kept]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return str(folder / "pairs.jsonl"), len(kept)


def keep_pictures(
    data: Data, indices: NDArray[np.int64], folder: Path, count: int
) -> list[tuple[str, list[str]]]:
    """Write the first `count` of these pictures that can be read into a new folder; returns their names there and captions."""
    folder.mkdir(parents=True)
    kept: list[tuple[str, list[str]]] = []
    for i in map(int, indices):
        if len(kept) == count:
            break
        try:
            picture, captions = data.pairs.read(i)
            decode(picture, where=data.pairs.keys[i])
        except (InputError, OSError):
            continue
        kept.append((_keep(picture, folder, len(kept)), list(captions)))
    return kept


def _keep(picture: Picture, folder: Path, number: int) -> str:
    """Write a picture, its bytes as they are where it has any; returns its name."""
    if isinstance(picture, (str, os.PathLike)):
        name = f"{number}{Path(picture).suffix.lower()}"
        shutil.copyfile(picture, folder / name)
        return name
    if isinstance(picture, (Image.Image, np.ndarray)):
        image: Image.Image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(folder / f"{number}.png")
        return f"{number}.png"
    name = f"{number}.{(Image.open(io.BytesIO(picture)).format or 'png').lower()}"
    (folder / name).write_bytes(picture)
    return name
