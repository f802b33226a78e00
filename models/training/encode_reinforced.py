"""What a batch with a teacher's embeddings offers to objectives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.source import DualEncoder


@dataclass(frozen=True)
class ReinforcedBatch:
    """B pictures and B texts with what the teacher makes of each; row i of both belongs together, except in `unlabelled` batches."""

    pixels: Tensor  # (B, 3, H, W) float32, normalised for the student
    input_ids: Tensor  # (B, L) int64
    groups: (
        Tensor | None
    )  # (B,) int64, as in PairBatch; None: row i of pictures and of texts do not belong together
    teacher_image: Tensor  # (B, D) float32 unit rows in the student's width, of the same crop as `pixels`
    teacher_text: Tensor  # (B, D)
    teacher_scale: Tensor  # () factor on the teacher's cosines
    unreadable: tuple[str, ...] = ()  # keys of pairs that could not be read and were replaced

    @property
    def constants(self) -> dict[str, Tensor]:
        """What is the same for every row, so that no part and no process adds to it."""
        return {"teacher_scale": self.teacher_scale}

    def split(self, parts: int) -> list[ReinforcedBatch]:
        """Equal parts in order; B is a multiple of `parts`."""
        groups = (None,) * parts if self.groups is None else self.groups.chunk(parts)
        columns = zip(
            self.pixels.chunk(parts),
            self.input_ids.chunk(parts),
            groups,
            self.teacher_image.chunk(parts),
            self.teacher_text.chunk(parts),
            strict=True,
        )
        return [ReinforcedBatch(*column, teacher_scale=self.teacher_scale) for column in columns]


def encode_reinforced(model: DualEncoder, batch: ReinforcedBatch) -> dict[str, Tensor]:
    """Unit embeddings `image`, `text`, `teacher_image`, `teacher_text` (B, D) float32, and `groups` (B,) where rows belong together."""
    return {
        "image": F.normalize(model.encode_image(batch.pixels).float(), dim=-1),
        "text": F.normalize(model.encode_text(batch.input_ids).float(), dim=-1),
        **({} if batch.groups is None else {"groups": batch.groups}),
        "teacher_image": batch.teacher_image,
        "teacher_text": batch.teacher_text,
    }
