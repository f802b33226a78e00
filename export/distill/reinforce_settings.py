"""How data is reinforced, checked where it is set."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeclip.errors import TrainingError
from edgeclip.models.training.recipe import Augmentation


@dataclass(frozen=True)
class ReinforceSettings:
    """How data is reinforced. What students' recipes have too must be the same there: augmentation, templates, validation_*.

    Raises:
        TrainingError: a value out of its range; one line names it.
    """

    views: int = 4  # of each training picture
    seed: int = 0  # of the views
    augmentation: Augmentation = field(default_factory=Augmentation)
    templates: tuple[str, ...] = ("{}",)  # every caption stands in each
    captions: str = ""  # .jsonl or .csv of further captions by key
    text_bank: str = ""  # file of texts, one a line: the data is a folder of pictures that nobody described
    data_format: str = "auto"
    validation_share: float = 0.05  # of the pairs: kept for scores, never trained on
    validation_pairs: int = 1000
    pairs_per_shard: int = 2048
    workers: int = 2  # threads that prepare pictures ahead; 0 = none

    def __post_init__(self) -> None:
        limits = {
            "views": (self.views >= 1, "1 or more"),
            "templates": (
                len(self.templates) > 0 and all("{}" in one for one in self.templates),
                "texts that hold {}",
            ),
            "validation_share": (0 <= self.validation_share <= 0.5, "0 to 0.5"),
            "validation_pairs": (self.validation_pairs >= 1, "1 or more"),
            "pairs_per_shard": (self.pairs_per_shard >= 1, "1 or more"),
            "workers": (self.workers >= 0, "0 or more"),
        }
        for name, (holds, wanted) in limits.items():
            if not holds:
                raise TrainingError(f"{name}: expected {wanted}, got {getattr(self, name)!r}.")
        if self.text_bank and (self.captions or self.templates != ("{}",)):
            raise TrainingError(
                "text_bank: its texts are whole, and pictures beside it have none. Take out captions and templates."
            )
