"""One step's material, and how it is split and moved."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from edgeclip.errors import TrainingError

T = TypeVar("T")


class Batches(Protocol):
    """What feeds a run. Batch i depends on the recipe and on i alone, so that resuming is exact; threads may share it.

    May also offer `fingerprint: str` (a resumed run refuses other data) and `validate(model, device) -> dict[str, float]`
    whose entry "score" (higher is better) chooses the best checkpoint.
    """

    def batch(self, step: int) -> Any:
        """A dataclass of tensors; `unreadable: tuple[str, ...]`, where there, is counted and reported; `constants`,
        a dict of tensors, are given to the objectives as they are."""
        ...


@dataclass(frozen=True)
class PairBatch:
    """B pairs of a picture and a text."""

    pixels: Tensor  # (B, 3, H, W) float32, normalised
    input_ids: Tensor  # (B, L) int64
    groups: Tensor  # (B,) int64: pairs of one group say the same, e.g. carry the same caption
    second: Tensor | None = None  # (B, 3, H, W): another view of each picture
    unreadable: tuple[str, ...] = ()  # keys of pairs that could not be read and were replaced

    def split(self, parts: int) -> list[PairBatch]:
        """Equal parts in order; B is a multiple of `parts`."""
        seconds = self.second.chunk(parts) if self.second is not None else (None,) * parts
        columns = zip(
            self.pixels.chunk(parts),
            self.input_ids.chunk(parts),
            self.groups.chunk(parts),
            seconds,
            strict=True,
        )
        return [PairBatch(*column) for column in columns]


def split(batch: Any, parts: int) -> list[Any]:
    """The batch's own parts.

    Raises:
        TrainingError: a user's batch that cannot be split.
    """
    if parts == 1:
        return [batch]
    if not hasattr(batch, "split"):
        raise TrainingError(
            f"accumulate: {type(batch).__name__} has no split(parts). Give it one, or set accumulate=1."
        )
    found: list[Any] = batch.split(parts)
    return found


def to_device(batch: T, device: torch.device) -> T:
    """A copy whose tensors are on `device`; other fields stay."""
    if device.type == "cpu":
        return batch
    moved = {
        spec.name: value.pin_memory().to(device, non_blocking=True)
        for spec in dataclasses.fields(batch)  # type: ignore[arg-type]
        if isinstance(value := getattr(batch, spec.name), Tensor)
    }
    return dataclasses.replace(batch, **moved)  # type: ignore[type-var]
