"""What a query does. A task is one file with `UNIT` and `open_task`, and one line in `TASKS`; its inputs lie in memory before the clock runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol

from edgeclip.bench.settings import Settings
from edgeclip.bundle import Bundle
from edgeclip.errors import InputError
from edgeclip.runtime.model import Model

if TYPE_CHECKING:
    from edgeclip.bench.samples import Inputs

Unit = Literal["picture", "text"]

TASKS: Mapping[str, str] = {
    "classify": "edgeclip.bench.tasks.classify",  # a picture's bytes to its label
    "detect": "edgeclip.bench.tasks.detect",  # a picture's bytes to boxes with labels
    "embed": "edgeclip.bench.tasks.embed",  # a picture's bytes to a vector
    "embed-text": "edgeclip.bench.tasks.embed_text",  # a text to a vector
    "search": "edgeclip.bench.tasks.search",  # a text to the best of an index of vectors
}
AUTO = "auto"  # in the place of a task: what the bundle is for


class Task(Protocol):
    """One kind of query."""

    unit: Unit  # what a sample is
    samples: int  # how many different inputs there are to draw from

    def query(self, samples: Sequence[int]) -> object:
        """One call of the runtime with these inputs, as a user's program makes it: the timed part.

        One sample is passed by itself, several as a list that fills one call of the engine. Nothing that an earlier query found is
        used again.
        """


def unit_of(name: str) -> Unit:
    """What the task's samples are. Raises InputError for no such task."""
    unit: Unit = _module(name).UNIT
    return unit


def tower_of(name: str) -> str:
    """The kind of tower that a query's samples go through. Raises InputError for no such task."""
    module = _module(name)
    return str(getattr(module, "TOWER", {"picture": "image", "text": "text"}[module.UNIT]))


def picture_tower_of(name: str) -> str:
    """The tower whose variants are compared: of a task on texts, that of pictures too."""
    return "detector" if tower_of(name) == "detector" else "image"


def for_bundle(settings: Settings, bundle: Bundle) -> Settings:
    """The settings with a task in the place of AUTO: to detect where the bundle's only pictures are a detector's, else to classify."""
    if settings.task != AUTO:
        return settings
    towers = {variant.tower for variant in bundle.manifest.variants}
    return replace(settings, task="detect" if "detector" in towers and "image" not in towers else "classify")


def takes_labels(name: str) -> bool:
    """Whether the task's results are labels, whose vectors a pack may bring. Raises InputError for no such task."""
    return hasattr(_module(name), "labels_of")


def open_task(name: str, model: Model, inputs: Inputs, settings: Settings) -> Task:
    """Get a task ready.

    Raises:
        InputError: no such task, or one that the bundle cannot do.
    """
    found: Task = _module(name).open_task(model, inputs, settings)
    return found


def require_tower(model: Model, tower: str, task: str, heads: Sequence[str] = ("embeddings",)) -> None:
    """Raise InputError unless the bundle has such a tower, with one of these heads."""
    have = [variant.axes.head for variant in model.manifest.variants if variant.tower == tower]
    if not set(heads) & set(have):
        but = f", only {tower} towers that give {' and '.join(sorted(set(have)))}" if have else ""
        raise InputError(
            f"{model.bundle.root}: task {task!r} needs {'an' if tower == 'image' else 'a'} {tower} tower that gives {' or '.join(heads)}; the bundle has none{but}. "
            "Choose another task or bundle."
        )


def _module(name: str) -> ModuleType:
    if name not in TASKS:
        raise InputError(f"task {name!r}: no such task. Choose one of {', '.join(TASKS)}.")
    return import_module(TASKS[name])
