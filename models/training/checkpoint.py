"""A run's checkpoints: whole folders, pointers to the latest and to the best, old ones taken away.

checkpoints/step-00000500/model/                a source folder: `edgeclip export` takes it as it is
                          training.safetensors  the optimizer's state; the running weights where `model` holds an average
                          training.json         step, scores, counts
                          recipe.json           the resolved recipe
checkpoints/latest, checkpoints/best            the name of a folder
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from edgeclip.errors import EdgeClipError, TrainingError
from edgeclip.files import new_folder, write_file
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source, save_source
from edgeclip.models.training.optimizer import AveragedCopy
from edgeclip.models.training.recipe import Recipe

FORMAT = "edgeclip.training"


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int = 0  # steps done
    loss: float = float("nan")  # of the last step
    score: float | None = None  # of the last validation
    best_step: int | None = None
    best_score: float | None = None
    unreadable: int = 0  # draws of pairs that could not be read
    fingerprint: str = ""  # of the data
    waited: int = 0  # validations since the best one

    def scored(self, score: float | None) -> Progress:
        """With a new validation score; on a tie the earlier step stays the best."""
        if score is None:
            return self
        better = self.best_score is None or score > self.best_score
        if better:
            return replace(self, score=score, best_step=self.step, best_score=score, waited=0)
        return replace(self, score=score, waited=self.waited + 1)


class Checkpoints:
    """The folder `checkpoints/` of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def at(self, step: int) -> Path:
        """The folder of one step."""
        return self.folder / f"step-{step:08d}"

    def pointed(self, name: str) -> Path | None:
        """The checkpoint that `latest` or `best` names; None where there is none yet.

        Raises:
            TrainingError: the pointer names a folder that is gone.
        """
        pointer = self.folder / name
        if not pointer.is_file():
            return None
        found = self.folder / pointer.read_text().strip()
        if not (found / "training.json").is_file():
            raise TrainingError(
                f"{pointer}: names {found.name}, which is not there. Write the name of one that is, or delete the file."
            )
        return found

    def save(
        self,
        source: Source,
        optimizer: Optimizer,
        average: AveragedCopy | None,
        progress: Progress,
        recipe: Recipe,
    ) -> Path:
        """Write one checkpoint, whole or not at all; then move the pointers, then take old ones away."""
        folder = self.at(progress.step)
        with new_folder(folder, overwrite=True) as scratch:
            shipped = source if average is None else replace(source, model=average.model)  # type: ignore[arg-type]
            write_source(scratch / "model", shipped)
            tensors = optimizer_state(source.model, optimizer)
            if average is not None:
                tensors |= {f"weights/{name}": value for name, value in source.model.state_dict().items()}
            save_file(
                {name: value.contiguous().cpu() for name, value in tensors.items()},
                scratch / "training.safetensors",
            )
            write_file(scratch / "recipe.json", json.dumps(recipe.to_json(), indent=1) + "\n")
            write_file(
                scratch / "training.json", json.dumps({"format": FORMAT, **asdict(progress)}, indent=1) + "\n"
            )
        best = self.at(progress.step if progress.best_step is None else progress.best_step)
        write_file(self.folder / "best", best.name + "\n")
        write_file(self.folder / "latest", folder.name + "\n")
        self._rotate(folder, best)
        return folder

    def _rotate(self, newest: Path, best: Path) -> None:
        old = sorted(folder for folder in self.folder.glob("step-*") if folder <= newest)[: -self._keep]
        for folder in [
            *old,
            *self.folder.glob(".step-*"),
        ]:  # the latter: half-written ones of a run that was killed
            if folder != best:
                shutil.rmtree(folder)


def write_source(folder: Path, source: Source) -> None:
    """The source as a folder that `load_source` opens, in place of what is there."""
    save_source(
        folder,
        model=source.model,
        preprocessing=source.preprocessing,
        text=source.text,
        tokenizer_json=source.tokenizer_json,
        licence=source.licence,
        templates=source.templates,
        detection=source.detection,
        overwrite=True,
    )


def read_progress(folder: Path) -> Progress:
    """How far the run of a checkpoint was. Raises TrainingError if the file is damaged."""
    path = folder / "training.json"
    try:
        data = json.loads(path.read_text())
        if data.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        return Progress(**data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def read_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a checkpoint. Raises TrainingError if the file is damaged."""
    path = folder / "recipe.json"
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        return data
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def load_weights(folder: Path) -> tuple[Source, dict[str, Tensor]]:
    """The source as shipped, and the tensors of training.safetensors.

    Raises:
        TrainingError: a file is missing or damaged.
    """
    path = folder / "training.safetensors"
    try:
        return load_source(str(folder / "model")), load_file(path)
    except (OSError, SafetensorError, EdgeClipError) as error:
        raise _damaged(path, error) from error


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors as `<key>/<parameter's name>`."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` took."""
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        key, _, name = full_name.partition("/")
        if key != "weights":
            where = value.device if key == "step" else parameters[name].device  # steps are counted on the CPU
            optimizer.state[parameters[name]][key] = value.to(where)


def running_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load the weights that go on being trained, where the checkpoint's model is their average."""
    with torch.no_grad():
        model.load_state_dict(
            {name.partition("/")[2]: v for name, v in tensors.items() if name.startswith("weights/")}
        )


def _damaged(path: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"{path}: cannot be read ({error}). Write an older checkpoint's name into {path.parent.parent / 'latest'}, or start anew elsewhere."
    )
