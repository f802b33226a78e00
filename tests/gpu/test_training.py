"""Training on a GPU goes where it goes on the CPU, in bfloat16 too, and a run that is stopped goes on: pytest -m gpu."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgeclip.models.training import train
from tests.training.test_loop import Watched, weights
from tests.training.tiny import curve, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and torch with CUDA"),
]


def losses(folder: Path) -> list[float]:
    return [loss for _, loss in curve(folder)]


def test_the_losses_are_those_of_the_cpu(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        train(tiny(device=device), tmp_path / device, progress=False)
    np.testing.assert_allclose(losses(tmp_path / "cuda"), losses(tmp_path / "cpu"), rtol=2e-3)
    assert all(tensor.device.type == "cpu" for tensor in weights(tmp_path / "cuda").values())


def test_bfloat16_learns(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        train(tiny(device="cuda", precision=precision, steps=40), tmp_path / precision, progress=False)
    whole, half = (losses(tmp_path / precision) for precision in ("fp32", "bf16"))
    assert np.mean(half[-5:]) < 0.8 * half[0]
    assert abs(np.mean(half[-5:]) - np.mean(whole[-5:])) < 0.3


def test_what_was_stopped_goes_on(tmp_path: Path) -> None:
    stops = [5]

    def look(step: int) -> None:
        if step in stops:
            stops.remove(step)
            raise KeyboardInterrupt

    recipe = tiny(device="cuda", ema_decay=0.9, workers=0, batches=lambda *parts: Watched(look, *parts))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped", progress=False)
    train(recipe, tmp_path / "stopped", progress=False)
    train(recipe, tmp_path / "whole", progress=False)
    np.testing.assert_allclose(losses(tmp_path / "stopped"), losses(tmp_path / "whole"), rtol=1e-4)
    for name, tensor in load_file(tmp_path / "whole/model/model.safetensors").items():
        torch.testing.assert_close(weights(tmp_path / "stopped")[name], tensor, rtol=1e-3, atol=1e-4)
