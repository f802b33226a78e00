"""The test helper itself: outliers are there, they hurt low precision, and the fp32 function is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgeclip.models.clip import Clip
from edgeclip.models.sources import load_source
from tests.checkpoints import openclip_config, write_hf, write_openclip
from tests.models.agreement import inputs, our_outputs
from tests.stress import norm_outputs, plant_outliers, streams


def int8_error(x: torch.Tensor) -> float:
    """Median relative error when one scale serves the whole tensor."""
    step = x.abs().max() / 127
    return float((((x / step).round() * step - x).abs() / x.abs().clamp_min(1e-6)).median())


def test_outliers_change_precision_and_not_the_function(tmp_path: Path) -> None:
    write_hf(tmp_path)
    source = load_source(str(tmp_path))
    model = source.model
    assert isinstance(model, Clip)
    pixels, ids = inputs(source)
    before = our_outputs(model, pixels, ids)
    calm = [max(float(x.abs().max()) for x in streams(tower)) for tower in (model.image, model.text)]
    assert max(calm) < 30
    assert max(int8_error(x) for x in norm_outputs(model.image)) < 0.1
    plant_outliers(model, magnitude=1400)
    for old, new in zip(before, our_outputs(model, pixels, ids), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6)
    for tower in (model.image, model.text):
        assert 900 < max(float(x.abs().max()) for x in streams(tower)) < 2200
        assert torch.isinf(streams(tower)[-1].half() ** 2).any()
        for output in norm_outputs(tower):
            raised = output.abs().flatten(0, -2).max(dim=0).values > 300
            assert 1 <= int(raised.sum()) <= 3
            assert int8_error(output) > 0.9  # rounded to nothing


def test_config_says_what_the_modules_hold(tmp_path: Path) -> None:
    write_hf(tmp_path)
    source = load_source(str(tmp_path))
    model = source.model
    assert isinstance(model, Clip)
    plant_outliers(model)
    pixels, ids = inputs(source)
    again = Clip(model.config).eval()
    again.load_state_dict(model.state_dict())
    for old, new in zip(our_outputs(model, pixels, ids), our_outputs(again, pixels, ids), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)


def test_attention_pools_are_refused(tmp_path: Path) -> None:
    write_openclip(tmp_path, openclip_config("tiny", image={"attentional_pool": True}))
    model = load_source(str(tmp_path)).model
    assert isinstance(model, Clip)
    with pytest.raises(ValueError, match="without an attention pool"):
        plant_outliers(model)
