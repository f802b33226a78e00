"""What a query does. A task is one file with `open_task`, and one line in `TASKS`; its inputs lie in memory before the clock runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol

from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.errors import InputError
from edgeclip.runtime.model import Model

TASKS: Mapping[str, str] = {
    "classify": "edgeclip.bench.tasks.classify",  # a picture's bytes to its label
    "embed": "edgeclip.bench.tasks.embed",  # a picture's bytes to a vector
    "embed-text": "edgeclip.bench.tasks.embed_text",  # a text to a vector
    "search": "edgeclip.bench.tasks.search",  # a text to the best of an index of vectors
}


class Task(Protocol):
    """One kind of query."""

    unit: str  # what a sample is: "picture" or "text"
    samples: int  # how many different inputs there are to draw from

    def query(self, samples: Sequence[int]) -> object:
        """One call of the runtime with these inputs, as a user's program makes it: the timed part."""


def open_task(name: str, model: Model, inputs: Inputs, settings: Settings) -> Task:
    """Get a task ready.

    Raises:
        InputError: no such task, or one that the bundle cannot do.
    """
    if name not in TASKS:
        raise InputError(f"task {name!r}: no such task. Choose one of {', '.join(TASKS)}.")
    found: Task = import_module(TASKS[name]).open_task(model, inputs, settings)
    return found
