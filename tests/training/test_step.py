"""Splitting a batch, over time or over processes, leaves the gradient as it is."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeclip.errors import TrainingError
from edgeclip.models.source import DualEncoder
from edgeclip.models.training import train
from edgeclip.models.training.batch import PairBatch
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.objectives import Objectives
from edgeclip.models.training.step import backward, check_splittable, encode_pairs, encoder
from tests.training.tiny import start_process, tiny


class Toy(DualEncoder):
    """Linear towers with dropout, in float64."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 16, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 6)
        )
        self.text = nn.EmbeddingBag(20, 6)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0))
        self.double()

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.image(pixels)  # type: ignore[no-any-return]

    def encode_text(self, input_ids: Tensor) -> Tensor:
        return self.text(input_ids)  # type: ignore[no-any-return]


def toy(dropout: float = 0.0) -> Toy:
    torch.manual_seed(0)
    return Toy(dropout)


def batch() -> PairBatch:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 8, 3, 4, 4, generator=generator, dtype=torch.float64)
    return PairBatch(
        first,
        torch.randint(0, 20, (8, 5), generator=generator),
        torch.tensor([0, 1, 2, 0, 3, 4, 4, 5]),
        second,
    )


def gradients(model: Toy, objectives: str, accumulate: int) -> tuple[float, dict[str, Tensor]]:
    entries = tuple((name, 0.5 + i) for i, name in enumerate(objectives.split()))
    loss, _ = backward(
        model, batch(), encode_pairs, Objectives(entries), nullcontext, seed=5, accumulate=accumulate
    )
    return float(loss), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objectives", ["info_nce", "sigmoid", "multi_positive image_contrast"])
@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulating_gives_the_whole_batchs_gradient(objectives: str, accumulate: int) -> None:
    loss, whole = gradients(toy(), objectives, 1)
    same_loss, parts = gradients(toy(), objectives, accumulate)
    assert same_loss == pytest.approx(loss, abs=1e-6)  # the loss itself is float32
    assert parts.keys() == whole.keys()
    assert max((parts[name] - whole[name]).abs().max().item() for name in whole) < 1e-6
    assert min(value.abs().max().item() for value in whole.values()) > 1e-3  # none is trivially equal


def test_averaging_the_parts_losses_would_be_another_gradient() -> None:
    _, whole = gradients(toy(), "info_nce", 1)
    model = toy()
    for part in batch().split(4):
        backward(model, part, encode_pairs, Objectives((("info_nce", 0.5 / 4),)), nullcontext, seed=5)
    assert (
        max(
            (p.grad - whole[name]).abs().max().item()
            for name, p in model.named_parameters()
            if p.grad is not None
        )
        > 0.01
    )


def test_dropout_repeats_itself_between_the_two_encodings() -> None:
    # With other dice in the second encoding the gradient belongs to no loss: compare with finite differences.
    model = toy(dropout=0.5).train()
    _, found = gradients(model, "info_nce", 4)
    weight, step = model.image[1].bias, 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[3] += sign * step
        model.zero_grad()
        encoded = []
        for number, part in enumerate(batch().split(4)):
            torch.manual_seed(5 * 4 + number)
            encoded.append({name: value.double() for name, value in _features(model, part).items()})
        values.append(_loss(model, encoded))
        with torch.no_grad():
            weight[3] -= sign * step
    assert found["image.1.bias"][3].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


def _features(model: Toy, part: PairBatch) -> dict[str, Tensor]:
    normalize = nn.functional.normalize
    return {
        "image": normalize(model.encode_image(part.pixels), dim=-1),
        "text": normalize(model.encode_text(part.input_ids), dim=-1),
    }


def _loss(model: Toy, encoded: list[dict[str, Tensor]]) -> float:
    whole = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
    total, _ = Objectives((("info_nce", 0.5),))({**whole, "scale": model.logit_scale.exp()})
    return total.item()


def test_batch_norm_and_foreign_batches_cannot_be_split() -> None:
    model = toy()
    model.image.append(nn.BatchNorm1d(6))
    check_splittable(model, 1, Shard())
    for accumulate, shard in [(2, Shard()), (1, Shard(0, 2))]:
        with pytest.raises(TrainingError, match=r"image\.5 is a batch norm"):
            check_splittable(model, accumulate, shard)
    with pytest.raises(TrainingError, match=r"object has no split\(parts\)"):
        backward(
            toy(), object(), encode_pairs, Objectives((("info_nce", 1.0),)), nullcontext, seed=0, accumulate=2
        )
    with pytest.raises(TrainingError, match=r"no 'pair'; did you mean pairs\?"):
        encoder("pair")


TRAIN = """
import sys
from pathlib import Path
from edgeclip.models.training import train
from tests.training.tiny import tiny
train(tiny(steps=4, accumulate=2), Path(sys.argv[1]), progress=False)
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    train(tiny(steps=4), tmp_path / "one", progress=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        start_process(TRAIN, str(tmp_path / "two"), RANK=str(r), LOCAL_RANK=str(r), **where) for r in (0, 1)
    ]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    # Adam divides by the gradient's own size, so float32 noise in near-zero gradients shows: measured 2e-6, rates are 1e-2.
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-4
