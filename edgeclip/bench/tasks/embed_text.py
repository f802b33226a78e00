"""A text to a unit vector, tokenized and computed anew for each query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import Unit, require_tower
from edgeclip.runtime.model import Model

UNIT: Unit = "text"


@dataclass(frozen=True)
class EmbedText:
    """See `edgeclip.bench.tasks.Task`."""

    model: Model
    texts: Sequence[str]

    unit: Unit = UNIT

    @property
    def samples(self) -> int:
        """How many different ones queries draw from."""
        return len(self.texts)

    def query(self, samples: Sequence[int]) -> object:
        """One call: the timed part."""
        if len(samples) == 1:
            return self.model.embed_texts(self.texts[samples[0]])
        return self.model.embed_texts([self.texts[i] for i in samples])


def open_task(model: Model, inputs: Inputs, settings: Settings) -> EmbedText:
    """Raises InputError for a bundle without a text tower."""
    require_tower(model, "text", "embed-text")
    model.keep_texts(0)
    return EmbedText(model, inputs.texts)
