"""A run ends early once the held-out score has not risen for as many checkpoints as its recipe waits, and where it is resumed too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeclip.errors import TrainingError
from edgeclip.models.training import Recipe, train
from edgeclip.models.training.data.pairs import ShuffledPairs
from tests.training.tiny import tiny


def scored(scores: list[float], **changes: Any) -> Recipe:
    """TINY with a checkpoint every step and prescribed scores: one at step 0, then one for each checkpoint."""

    class Scored(ShuffledPairs):
        def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
            return {"score": scores.pop(0)}

    return tiny(batches=Scored, checkpoint_every=1, **changes)


@pytest.mark.parametrize(
    ("patience", "scores", "end"),
    [
        (2, [0.0, 0.3, 0.5, 0.4, 0.6, 0.5, 0.6], 6),  # 0.4 is forgiven; a tie is no better
        (1, [0.9, 0.3, 0.2], 2),  # what stands before the first step is no checkpoint to ship
        (0, [0.0] * 13, 12),
    ],
)
def test_ends_after_so_many_checkpoints_in_a_row(
    tmp_path: Path, patience: int, scores: list[float], end: int
) -> None:
    result = train(scored(scores, patience=patience), tmp_path, progress=False)
    assert (result.steps, scores) == (end, [])


def test_resumed_it_counts_on_and_an_ended_run_stays_ended(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Kills(list[float]):
        def pop(self, index: Any = -1) -> float:
            if not self:
                raise Killed
            return super().pop(index)

    with pytest.raises(Killed):
        train(scored(Kills([0.0, 0.5, 0.4]), patience=2), tmp_path, progress=False)
    scores = [0.4, 0.9]
    assert train(scored(scores, patience=2), tmp_path, progress=False).steps == 3
    assert scores == [0.9], "the checkpoint before the kill was forgotten"
    assert train(scored([], patience=2), tmp_path, progress=False).steps == 3  # nothing is scored again
    more = [0.6, 0.1, 0.1, 0.1]
    result = train(scored(more, patience=3), tmp_path, progress=False)  # more patience goes on
    assert (result.steps, result.best_step) == (7, 4)


def test_needs_something_held_out(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"patience: 2 checkpoints .* nothing is held out"):
        train(tiny(patience=2, validation_share=0.0), tmp_path, progress=False)
