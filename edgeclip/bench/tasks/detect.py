"""A picture's bytes to boxes with labels. The labels' vectors are made once before, as a device has them in a label pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeclip.bench.generated import NOUNS
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings
from edgeclip.bench.tasks import Unit, require_tower
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.model import Model

UNIT: Unit = "picture"
TOWER = "detector"


@dataclass(frozen=True)
class Detect:
    """See `edgeclip.bench.tasks.Task`."""

    model: Model
    pictures: Sequence[bytes]
    labels: LabelPack | None  # None: those baked into the detector

    unit: Unit = UNIT

    @property
    def samples(self) -> int:
        """How many different ones queries draw from."""
        return len(self.pictures)

    def query(self, samples: Sequence[int]) -> object:
        """One call: the timed part, boxes of equal things taken out included."""
        if len(samples) == 1:
            return self.model.detect(self.pictures[samples[0]], self.labels)
        return self.model.detect([self.pictures[i] for i in samples], self.labels, batch_size=len(samples))


def open_task(model: Model, inputs: Inputs, settings: Settings, labels: LabelPack | None = None) -> Detect:
    """Of these labels; None: of `labels_of`. Raises InputError for a bundle that cannot find them."""
    return Detect(model, inputs.pictures, labels or labels_of(model, settings))


def labels_of(model: Model, settings: Settings) -> LabelPack | None:
    """The labels of the settings as a pack; else None for those baked into the detector; else twenty nouns."""
    require_tower(model, TOWER, "detect", ("embeddings", "labels", "prompts"))
    if not settings.labels and model.manifest.variants_of(TOWER, "labels"):
        return None
    require_tower(model, TOWER, "detect", ("embeddings", "prompts"))  # a baked one knows its own labels only
    require_tower(model, "text", "detect")
    return model.make_labels(settings.labels or NOUNS)
