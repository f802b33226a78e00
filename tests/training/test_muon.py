"""Muon against linear algebra and PyTorch's AdamW, and its state across a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeclip.models.nano import NanoCLIP, NanoConfig
from edgeclip.models.training import train
from edgeclip.models.training.muon import Muon, matrices, orthogonalised
from edgeclip.models.training.optimizer import make_optimizer
from tests.training.tiny import curve, tiny


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_singular_values_come_together_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 3
    found = orthogonalised(matrix)
    values = torch.linalg.svdvals(found)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.T @ found @ right.T  # diagonal where the singular vectors are the matrix's own
    assert float((turned - torch.diag(turned.diagonal())).abs().max()) < 1e-3
    assert float(turned.diagonal().min()) > 0.6


def test_the_rest_is_adamw() -> None:
    torch.manual_seed(0)
    start = torch.randn(5, 3)
    gradients = torch.randn(6, 5, 3)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"params": [ours], "weight_decay": 0.1, "orthogonal": False}
    mine = Muon([group], lr=1e-2, betas=(0.9, 0.98), eps=1e-6)
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_matrix_moves_by_the_size_that_adamw_would() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(16, 4, 3, 3))
    mine = Muon([{"params": [weight], "weight_decay": 0.0, "orthogonal": True}], 0.5, (0.9, 0.98), 1e-6)
    weight.grad = torch.randn_like(weight) * 1e3  # its size must not matter
    mine.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.5 * 0.2, rel=0.2)


def test_which_weights_are_turned() -> None:
    model = NanoCLIP(NanoConfig(widths=(8,), depths=(1,), embed_dim=8, vocab_size=16, text_width=8))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    turned = {names[id(parameter)] for parameter in matrices(model)}
    assert {"image.stages.0.weight", "image.projection.weight", "text.projection.weight"} <= turned
    assert not turned & {
        "text.embedding.weight",
        "text.weight.weight",
        "image.stages.1.weight",
        "logit_scale",
    }
    optimizer = make_optimizer(model, tiny(optimizer="muon"))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    recipe = tiny(optimizer="muon", ema_decay=0.9)
    train(recipe, tmp_path / "whole", progress=False)
    train(recipe, tmp_path / "parts", progress=False)
    (tmp_path / "parts/checkpoints/latest").write_text("step-00000008\n")
    train(recipe, tmp_path / "parts", progress=False)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    model = "model/model.safetensors"
    assert (tmp_path / "parts" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()
