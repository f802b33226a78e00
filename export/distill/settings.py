"""What may be chosen about a distillation, and how it becomes the settings of its parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError, TrainingError
from edgeclip.export.api import ExportSettings
from edgeclip.export.distill.budget import Percentile
from edgeclip.export.distill.reinforce_settings import ReinforceSettings
from edgeclip.files import leftovers
from edgeclip.models.training.data.unlabelled import UNPAIRED
from edgeclip.models.training.recipe import Recipe
from edgeclip.models.training.recipes import load_recipe
from edgeclip.models.training.starts import InFolder


@dataclass(frozen=True)
class LatencyBudget:
    """A student by what it takes on a device, looked up in reports that were measured there."""

    ms: float
    reports: tuple[Path, ...]
    percentile: Percentile = "p90"


@dataclass(frozen=True)
class DistillSettings:
    """Everything else that may be chosen; data, text bank, augmentation, objectives and steps are the recipe's."""

    recipe: Recipe = field(default_factory=lambda: load_recipe("distill"))
    views: int = 4  # of each training picture that teachers see
    captions: str = ""  # file of further captions by key
    pairs_per_shard: int = 2048
    allow_larger: bool = False  # a student with more parameters than its teachers
    allow_weaker: bool = False  # teachers that score below the student that they should teach
    allow_pickle: bool = False
    examples: int = 8  # pictures of each kind in the report
    timing_s: float = 4.0  # that latencies are measured for; 0 = not at all
    finish_steps: int = (
        0  # of training for int8 behind the training, after which the bundle is int8; 0 = none
    )
    export: ExportSettings = field(default_factory=ExportSettings)

    def __post_init__(self) -> None:
        for name in ("examples", "timing_s", "finish_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: expected 0 or more, got {getattr(self, name)}.")

    def reinforced_by(self) -> ReinforceSettings:
        """How the data is reinforced: what the recipe says too is the same there.

        Raises:
            TrainingError: a value out of its range.
        """
        recipe = self.recipe
        return ReinforceSettings(
            views=self.views,
            seed=recipe.seed,
            augmentation=recipe.augmentation,
            templates=recipe.templates,
            captions=self.captions,
            text_bank=recipe.text_bank,
            data_format=recipe.data_format,
            validation_share=recipe.validation_share,
            validation_pairs=recipe.validation_pairs,
            pairs_per_shard=self.pairs_per_shard,
            workers=recipe.workers,
        )


@dataclass(frozen=True)
class Folder:
    """What lies where in the output."""

    root: Path

    @property
    def state(self) -> Path:
        """What the folder is of; a later call must ask for the same."""
        return self.root / "distill.json"

    @property
    def start(self) -> Path:
        """The student before it learned: a source."""
        return self.root / "start"

    @property
    def reinforced(self) -> Path:
        """What the teachers made of the data."""
        return self.root / "reinforced"

    @property
    def run(self) -> Path:
        """The training run; run/model is the student as a source."""
        return self.root / "run"

    @property
    def finished(self) -> Path:
        """The student finished for int8."""
        return self.root / "finished"

    @property
    def bundle(self) -> Path:
        """The result."""
        return self.root / "bundle"

    @property
    def report(self) -> Path:
        """The report for programs."""
        return self.root / "report.json"

    @property
    def page(self) -> Path:
        """The report for people."""
        return self.root / "report.html"

    def leftovers(self) -> list[Path]:
        """What a killed call left half written."""
        parts = (self.state, self.start, self.reinforced, self.run, self.finished, self.bundle, self.report, self.page)  # fmt: skip
        return [left for part in parts for left in leftovers(part)]

    def clear(self) -> None:
        """Remove that."""
        for left in self.leftovers():
            shutil.rmtree(left) if left.is_dir() else left.unlink()


RECIPE = "recipe"  # the student that the recipe itself describes
_OF_STARTS = ("init_from", "clip", "tokenizer", "experts", "top_k", "expert_layers", "expert_towers")


def for_student(recipe: Recipe) -> Recipe:
    """The recipe with batches of reinforced data, where it has plain ones: any recipe of pairs may be distilled with.

    Pictures without texts ask only for what compares with the teacher: of the objectives those stay.

    Raises:
        TrainingError: none would stay.
    """
    plain = recipe.batches in ("pairs", "reinforced")
    if recipe.text_bank and plain:
        kept = tuple((entry, weight) for entry, weight in recipe.objectives if entry in UNPAIRED)
        if not kept:
            raise TrainingError(
                f"objectives: none of {', '.join(map(_name, recipe.objectives))} can be asked of pictures without texts. "
                f"There are {', '.join(UNPAIRED)}."
            )
        return replace(recipe, batches="unlabelled", encode="reinforced", objectives=kept)
    if plain and recipe.encode in ("pairs", "reinforced"):
        return replace(recipe, batches="reinforced", encode="reinforced")
    return recipe


def _name(entry: tuple[str | Callable[..., Any], float]) -> str:
    return entry[0] if isinstance(entry[0], str) else getattr(entry[0], "__name__", "a callable")


def started(recipe: Recipe) -> Recipe:
    """The recipe without what only its own start reads, once that has made the student."""
    return replace(recipe, **{name: getattr(Recipe(), name) for name in _OF_STARTS})


def placed(recipe: Recipe, folder: Folder) -> Recipe:
    """The recipe of the run in this folder."""
    return replace(recipe, model=InFolder(folder.start), teacher_data=str(folder.reinforced))
