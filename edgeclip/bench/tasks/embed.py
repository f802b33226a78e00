"""A picture's bytes to a unit vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import Unit, require_tower
from edgeclip.runtime.model import Model

UNIT: Unit = "picture"


@dataclass(frozen=True)
class Embed:
    """See `edgeclip.bench.tasks.Task`."""

    model: Model
    pictures: Sequence[bytes]

    unit: Unit = UNIT

    @property
    def samples(self) -> int:
        """How many different ones queries draw from."""
        return len(self.pictures)

    def query(self, samples: Sequence[int]) -> object:
        """One call: the timed part."""
        if len(samples) == 1:
            return self.model.embed_images(self.pictures[samples[0]])
        return self.model.embed_images([self.pictures[i] for i in samples], batch_size=len(samples))


def open_task(model: Model, inputs: Inputs, settings: Settings) -> Embed:
    """Raises InputError for a bundle without an image tower that embeds."""
    require_tower(model, "image", "embed")
    return Embed(model, inputs.pictures)
