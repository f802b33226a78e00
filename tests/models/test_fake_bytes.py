"""Rounding to bytes with gradients: torch's own says the same, the exporter rounds weights the same, and a CLIP of such layers is saved whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeclip.errors import SourceError
from edgeclip.export.precision.weights8 import PAIR, encode, largest_pair
from edgeclip.models.clip import Clip
from edgeclip.models.fake_bytes import GROWTH, QuantisedLinear, through_bytes, weight_scale
from edgeclip.models.quantised import QuantisedClip, plain
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.training.checkpoint import write_source
from edgeclip.models.training.starts import from_scratch
from tests.training.tiny import tiny

LAYERS = ("image.blocks.0.attention.qkv", "image.blocks.0.mlp.fc2", "text.blocks.0.attention.out")


def spread(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)) * 2


def with_gradient(x: Tensor, make: object, weight: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = make(x)  # type: ignore[operator]
    (y * weight).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize(("zero", "low", "high"), [(100, 0, 255), (0, -128, 127)])
def test_a_tensor_as_torch_has_it(zero: int, low: int, high: int) -> None:
    x, weight, scale = spread(40, 30), spread(40, 30).flip(0), 0.0171
    ours = with_gradient(
        x, lambda x: through_bytes(x, torch.tensor(scale), torch.tensor(float(zero)), low, high), weight
    )
    theirs = with_gradient(
        x, lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high), weight
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=0)
    clipped = (ours[1] == 0).float().mean()
    assert 0.05 < clipped < 0.5  # both ends were reached, and most is inside


def test_each_row_as_torch_has_it() -> None:
    x, weight = spread(6, 50), spread(6, 50).flip(0)
    scale = torch.tensor([0.002, 0.005, 0.01, 0.02, 0.04, 0.08])
    zero = torch.zeros(6, dtype=torch.int32)
    ours = with_gradient(x, lambda x: through_bytes(x, scale[:, None], torch.zeros(6, 1), -127, 127), weight)
    theirs = with_gradient(
        x, lambda x: torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -127, 127), weight
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=0)
    lost = (ours[1] == 0).float().mean(dim=1)
    assert lost[0] > 0.5 > 0.1 > lost[-1] == 0


def test_scale_and_zero_learn_from_rounding_inside_and_from_the_ends_outside() -> None:
    scale, zero = torch.tensor(0.5, requires_grad=True), torch.tensor(10.0, requires_grad=True)
    x = torch.tensor([0.7, -0.8, 300.0, -9.0])  # 1.4 and -1.6 of a scale; far above; far below
    weight = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    y = through_bytes(x, scale, zero, 0, 255)
    assert y.tolist() == [0.5, -1.0, 122.5, -5.0]
    (y * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert scale.grad is not None
    assert zero.grad is not None
    # inside round(v) - v: 1 - 1.4 and -2 + 1.6; above 255 - 10; below 0 - 10
    assert float(scale.grad) == pytest.approx(1 * -0.4 + 10 * -0.4 + 100 * 245 + 1000 * -10, rel=1e-6)
    assert float(zero.grad) == pytest.approx(-0.5 * (100 + 1000))


def test_halves_go_to_the_even_byte() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert through_bytes(x, torch.tensor(1.0), torch.tensor(7.0), 0, 255).tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("saturating", [True, False])
@pytest.mark.parametrize("shape", [(7, 5), (64, 48), (3, 1)])
def test_weights_are_rounded_as_the_exporter_rounds_them(shape: tuple[int, int], saturating: bool) -> None:
    weight = spread(*shape) * torch.linspace(0, 3, shape[0])[:, None]  # one output of zeros
    theirs = encode(weight.numpy().T, saturating=saturating)
    scale = weight_scale(weight, saturating)
    np.testing.assert_array_equal(scale[:, 0], theirs.scale)
    ours = through_bytes(weight, scale, torch.zeros_like(scale), -127, 127)
    np.testing.assert_array_equal(ours.numpy().T, theirs.floats)
    assert saturating <= (largest_pair(theirs.q) <= PAIR)


def test_a_range_moves_by_its_steps_and_a_zero_stays_whole() -> None:
    layer = QuantisedLinear(4, 3, bias=True)
    layer.scale.fill_(0.25)
    layer.zero.fill_(100)
    assert [float(part.detach()) for part in layer.input_range()] == [0.25, 100]
    with torch.no_grad():
        layer.range.copy_(torch.tensor([np.log(2) / GROWTH, 3.4 / (255 * GROWTH)]))
    scale, zero = (float(part.detach()) for part in layer.input_range())
    assert (scale, zero) == (pytest.approx(0.5), 103)
    layer(spread(5, 4)).sum().backward()
    assert layer.range.grad is not None
    assert layer.weight.grad is not None
    with torch.no_grad():
        layer.range[1] = 99.0
    assert float(layer.input_range()[1].detach()) == 255


def test_sixteen_bits_do_not_reach_the_bytes() -> None:
    layer = QuantisedLinear(64, 8, bias=True)
    layer.scale.fill_(0.031)
    layer.zero.fill_(128)
    x = spread(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, layer(x))


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(0)
    source = from_scratch(tiny())
    model = source.model
    assert isinstance(model, Clip)
    made = QuantisedClip.of(model, LAYERS, bytes_="uint8", saturating=True)
    for i, layer in enumerate(made.quantised().values()):
        layer.scale.fill_(0.03 + i / 100)
        layer.zero.fill_(120 + i)
        torch.nn.init.normal_(layer.range, std=1e-3)
    return replace(source, model=made.eval())


def test_it_is_saved_and_loaded_with_its_ranges(source: Source, tmp_path: Path) -> None:
    write_source(tmp_path / "s", source)
    again = load_source(str(tmp_path / "s"))
    assert again.model.config == source.model.config  # type: ignore[union-attr]
    pixels = spread(3, 3, 16, 16)
    assert torch.equal(again.model.encode_image(pixels), source.model.encode_image(pixels))
    assert not torch.equal(plain(source.model).encode_image(pixels), source.model.encode_image(pixels))  # type: ignore[arg-type]
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    config["config"]["layers"][0] = "image.blocks.0.norm1"
    (tmp_path / "s" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="norm1 is a LayerNorm, not a linear layer"):
        load_source(str(tmp_path / "s"))


def test_a_plain_one_has_weights_whose_bytes_are_themselves(source: Source) -> None:
    model = source.model
    assert isinstance(model, QuantisedClip)
    found = plain(model)
    assert type(found) is Clip
    for name, layer in model.quantised().items():
        scale = weight_scale(layer.weight, saturating=True)
        weight = found.get_parameter(f"{name}.weight")
        assert not torch.equal(weight, layer.weight)
        assert torch.equal(through_bytes(weight, scale, torch.zeros_like(scale), -127, 127), weight)
        assert torch.equal(found.get_parameter(f"{name}.bias"), layer.bias)
