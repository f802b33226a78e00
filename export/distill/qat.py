"""Quantisation-aware finishing: a trained student learns to live with int8 before it is compressed to it.

    done = finish(load_source("run/model"), recipe, Path("finished"))
    edgeclip export finished/model -o student && edgeclip compress student -o student-int8 --ranges finished/finished.safetensors

What the compressor's int8 would do to the student stands in its layers from the first step on (calibrated.py): the same layers, smoothing,
ranges, zero points, rounding, biases. It is trained on its own recipe at a small rate, weights and ranges together, then weights
alone with the ranges held. What comes out is a plain source whose weights lie on their bytes, and the ranges.
Where pairs are held out, the quantised model is what is scored, and a finishing that scores below its start is thrown away.

    finished/start        the student as calibrated: a source whose layers go through bytes
             learn, settle     the two runs
             model             the result: a plain source
             finished.safetensors    its ranges
             finished.json     what it is of; the scores
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.errors import InputError, TrainingError
from edgeclip.export.distill.calibrated import calibrated, check_finishable, finished
from edgeclip.export.distill.settings import started
from edgeclip.export.linears import Array
from edgeclip.export.precision import ByteType
from edgeclip.export.precision.finished import NAME, save_ranges
from edgeclip.files import new_folder, write_file
from edgeclip.models.quantised import QuantisedClip
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.training import train
from edgeclip.models.training.checkpoint import write_source
from edgeclip.models.training.data import batches as find_batches
from edgeclip.models.training.distributed import Shard, pick_device
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.starts import InFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QatSettings:
    """Everything that may be chosen about a finishing; data, objectives, batch size and seed are the recipe's.

    Raises:
        InputError: a value out of its range.
    """

    steps: int = 400  # of both runs
    settle: float = 0.25  # share of the steps in which the ranges are held
    learning_rate: float = 1e-5
    towers: tuple[str, ...] = ("image", "text")
    samples: int = 256  # pictures and texts that the start is calibrated on
    bytes_: ByteType = "uint8"  # of layers' inputs; "int8" for TensorRT
    saturating: bool = True  # False: only for processors that sum products of bytes in 32 bits
    threads: int | None = None

    def __post_init__(self) -> None:
        limits = {
            "steps": (self.steps >= 2, "2 or more"),
            "settle": (0 < self.settle < 1, "above 0, below 1"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "towers": (
                0 < len(set(self.towers)) == len(self.towers) and set(self.towers) <= {"image", "text"},
                "image, text or both",
            ),
            "samples": (self.samples >= 8, "8 or more"),
            "bytes_": (self.bytes_ in ("uint8", "int8"), "uint8 or int8"),
        }
        for name, (holds, wanted) in limits.items():
            if not holds:
                raise InputError(f"finishing, {name}: expected {wanted}, got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class Finishing:
    """What a finishing left."""

    model: Path  # a source folder: the student with its weights on their bytes
    ranges: Path  # beside it, for `compress --ranges`
    learned: bool  # False: the start scored better on the held-out pairs and is what was kept
    float_score: float | None  # of the held-out pairs by the student before; None: nothing is held out
    start_score: float | None  # by its int8 as calibrated, before any training
    score: float | None  # by the int8 of what was kept

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "model": str(self.model), "ranges": str(self.ranges)}


def finish(
    student: Source,
    recipe: Recipe,
    output: Path,
    settings: QatSettings | None = None,
    *,
    progress: bool = True,
) -> Finishing:
    """Train a student for int8, or go on where an earlier call stopped.

    Args:
        recipe: what the student was trained with; steps, rate, schedule and start are the settings'.
        output: the folder, see above.
        progress: show a bar on stderr where that is a terminal.
    Raises:
        InputError: the student cannot be finished, or the folder is of another one or of other settings.
        TrainingError: the data cannot be used, or the loss is no longer a number.
        KeyboardInterrupt: stopped; the same call goes on.
    """
    settings, output = settings or QatSettings(), Path(output)
    check_finishable(student)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("finishing: runs in one process. Start it without torchrun, behind the training.")
    _check_same(student, recipe, settings, output)
    learn, settle = _recipes(recipe, settings, output)
    begin = output / "start"
    if not begin.exists():
        _write(begin, calibrated(student, samples(student, recipe, settings), bytes_=settings.bytes_, saturating=settings.saturating, threads=settings.threads))  # fmt: skip
    train(learn, output / "learn", progress=progress)
    ranges = _quantised(load_source(str(begin))).ranges()
    settle = replace(settle, frozen=(*settle.frozen, *ranges))
    done = train(settle, output / "settle", progress=progress)
    start_score = _score(output / "learn", 0)
    better = done.best_score is None or start_score is None or done.best_score >= start_score
    if not better:
        log.warning(
            "finishing: %s scores %.4f on the held-out pairs, its start %.4f: the start is kept. Lower learning_rate, or more steps.",
            student.name, done.best_score, start_score,
        )  # fmt: skip
    source, towers = finished(load_source(str(done.model if better else begin)))
    _write(output / "model", source)
    save_ranges(output / NAME, towers)
    found = Finishing(
        model=output / "model",
        ranges=output / NAME,
        learned=better,
        float_score=_float_score(student, recipe),
        start_score=start_score,
        score=done.best_score if better else start_score,
    )
    _note(output, {**_of(student, recipe, settings), "result": found.to_dict()})
    return found


def _recipes(recipe: Recipe, settings: QatSettings, output: Path) -> tuple[Recipe, Recipe]:
    """Of the run that learns ranges and weights, and of the one that holds the ranges."""
    steps = max(1, round(settings.steps * settings.settle))
    own = replace(
        started(recipe),
        resolution=0,
        ensemble=1.0,
        ema_decay=0.0,
        patience=0,
        optimizer="adamw",
        learning_rate=settings.learning_rate,
    )
    first = replace(own, **_of_length(settings.steps - steps), model=InFolder(output / "start"), schedule="constant", ship="last")  # fmt: skip
    return first, replace(
        own, **_of_length(steps), model=InFolder(output / "learn" / "model"), schedule="cosine"
    )


def _of_length(steps: int) -> dict[str, Any]:
    return {"steps": steps, "warmup_steps": steps // 10, "checkpoint_every": max(1, steps // 4)}


def samples(student: Source, recipe: Recipe, settings: QatSettings) -> Mapping[str, Array]:
    """What the recipe's first batches hold, prepared and augmented as in training: tower -> its inputs.

    Raises:
        TrainingError: the recipe's batches hold no pictures and texts.
    """
    batches = find_batches(recipe.batches)(recipe, student, Shard())
    pixels, ids, count = list[Array](), list[Array](), 0
    while count < settings.samples:
        batch = batches.batch(len(pixels))
        if not hasattr(batch, "pixels") or not hasattr(batch, "input_ids"):
            raise TrainingError(
                f"finishing: batches of {recipe.batches!r} hold no pixels and input_ids. Use pairs or reinforced."
            )
        pixels.append(batch.pixels.numpy())
        ids.append(batch.input_ids.numpy().astype(np.int32))
        count += len(batch.pixels)
    length = max(part.shape[1] for part in ids)
    pad = student.text.pad_id if student.text else 0
    padded = [np.pad(part, ((0, 0), (0, length - part.shape[1])), constant_values=pad) for part in ids]
    both = {"image": np.concatenate(pixels), "text": np.concatenate(padded)}
    return {tower: both[tower][: settings.samples] for tower in settings.towers}


def _float_score(student: Source, recipe: Recipe) -> float | None:
    batches = find_batches(recipe.batches)(recipe, student, Shard())
    validate = getattr(batches, "validate", None)
    if validate is None:
        return None
    device = pick_device(recipe.device)
    scores: dict[str, float] = validate(student.model.to(device), device)
    student.model.cpu()
    return scores.get("score")


def _score(run: Path, step: int) -> float | None:
    """The held-out score at a step of a run."""
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record.get("step") == step and "score" in record:
            return float(record["score"])
    return None


def _quantised(source: Source) -> QuantisedClip:
    assert isinstance(source.model, QuantisedClip), "the folder's own start is one"
    return source.model


def _write(folder: Path, source: Source) -> None:
    """Whole, or not at all."""
    with new_folder(folder, overwrite=True) as scratch:
        write_source(scratch, source)


def _of(student: Source, recipe: Recipe, settings: QatSettings) -> dict[str, Any]:
    own = {**asdict(settings), "threads": None}  # which change nothing
    return json.loads(json.dumps({"student": student.digest, "seed": recipe.seed, "settings": own}))  # type: ignore[no-any-return]


def _note(output: Path, what: Mapping[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_file(output / "finished.json", json.dumps(what, indent=1) + "\n")


def _check_same(student: Source, recipe: Recipe, settings: QatSettings, output: Path) -> None:
    """Raise InputError for a folder of another student or of other settings; note what a new one is of."""
    wanted, path = _of(student, recipe, settings), output / "finished.json"
    if not path.exists():
        if output.exists() and any(output.iterdir()):
            raise InputError(f"{output}: holds something else than a finishing. Name another folder.")
        _note(output, wanted)
        return
    try:
        have = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Name another folder.") from error
    for name, value in wanted.items():
        if have.get(name) != value:
            raise InputError(
                f"{output}: was begun with {name} {have.get(name)}, now it is {value}. Name another folder."
            )
