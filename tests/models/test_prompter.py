"""The prompter against torch's own encoder layer, and what a prompt must not depend on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from edgeclip.errors import InputError
from edgeclip.models import prompter
from edgeclip.models.clip import ImageTower
from edgeclip.models.prompter import PromptedClip, PromptedConfig, Prompter, sinusoids, start_from
from edgeclip.models.resolution import at_resolution
from edgeclip.models.sources import load_source
from tests.checkpoints import fixed_pixels
from tests.export.regions import prompted_source
from tests.export.sources import clip_source
from tests.models.agreement import assert_saves_and_loads
from tests.mutants import broken

NOISE = 2e-6  # of unit rows; a wrong scale of the scores moves them by 1e-2


def asked(seed: int = 0, rows: int = 5) -> tuple[PromptedClip, torch.Tensor, torch.Tensor]:
    model = prompted_source().model
    assert isinstance(model, PromptedClip)
    ends = torch.rand(2, rows, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(dim=2).values
    with torch.no_grad():
        return model, model.tokens(fixed_pixels(2, 32, 32)), ends.flatten(2)


def torch_layer(own: Prompter) -> nn.TransformerEncoderLayer:
    """torch's encoder layer with the prompter's weights."""
    block, width = own.block, own.block.norm1.normalized_shape[0]
    layer = nn.TransformerEncoderLayer(
        width, 1, block.mlp.fc1.out_features, dropout=0.0,
        activation=lambda x: x * torch.sigmoid(1.702 * x), batch_first=True, norm_first=True,
    ).eval()  # fmt: skip
    names = {
        "self_attn.in_proj_weight": block.attention.qkv.weight, "self_attn.in_proj_bias": block.attention.qkv.bias,
        "self_attn.out_proj.weight": block.attention.out.weight, "self_attn.out_proj.bias": block.attention.out.bias,
        "linear1.weight": block.mlp.fc1.weight, "linear1.bias": block.mlp.fc1.bias,
        "linear2.weight": block.mlp.fc2.weight, "linear2.bias": block.mlp.fc2.bias,
        "norm1.weight": block.norm1.weight, "norm1.bias": block.norm1.bias,
        "norm2.weight": block.norm2.weight, "norm2.bias": block.norm2.bias,
    }  # fmt: skip
    layer.load_state_dict(names)
    return layer


def by_torch(own: Prompter, tokens: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Each prompt by itself behind the picture's tokens, through the whole layer, read at its place. 4 x 4 patches and a class token."""
    layer, rows = torch_layer(own), []
    patches = [(c / 4, r / 4, (c + 1) / 4, (r + 1) / 4) for r in range(4) for c in range(4)]
    places = torch.zeros(18, tokens.shape[-1])  # of the class token, the patches and the prompt
    if own.place is not None:
        places[1:17] = layer.norm1(own.place(sinusoids(torch.tensor(patches), own.frequencies)))
    for i in range(prompts.shape[1]):
        x = torch.cat([tokens, prompts[:, i : i + 1]], dim=1)
        seen = layer.norm1(x) + places
        x = x + layer.self_attn(seen, seen, seen)[0]
        x = x + layer.linear2(layer.activation(layer.linear1(layer.norm2(x))))
        rows.append(x[:, -1])
    return normalize(own.projection(own.norm(torch.stack(rows, dim=1))), dim=-1)


@torch.no_grad()
def test_a_prompt_is_the_layer_read_at_its_place() -> None:
    model, tokens, boxes = asked()
    own, texts = model.prompter, normalize(torch.randn(2, 3, 24), dim=-1)
    want = by_torch(own, tokens, own.box(sinusoids(boxes, own.frequencies)))
    got = normalize(model.regions(tokens, boxes), dim=-1)
    torch.testing.assert_close(got, want, rtol=0, atol=NOISE)
    assert (want[:, 0] - want[:, 1]).norm(dim=-1).min() > 0.05
    found, places = model.grounding(tokens, texts)
    want = by_torch(own, tokens, own.text(texts))
    torch.testing.assert_close(normalize(found, dim=-1), want, rtol=0, atol=NOISE)
    head = nn.Sequential(own.ground1, nn.GELU(), own.ground2, nn.Sigmoid())(want)
    cx, cy, w, h = head.unbind(-1)
    want = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=-1)
    torch.testing.assert_close(places, want, rtol=0, atol=NOISE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("width**-0.5", "(width // 3) ** -0.5"),  # the scale of several heads
        ("+ shares[..., -1:] * own_v", ""),  # a prompt that does not see itself
        ("block.norm1(tokens), self", "tokens, self"),
        ("x if places is None else x + places", "x"),
        ("x + places", "x + places.flip(0)"),
        ("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=-2)"),
        # prompts that see one another
        ("scores = torch.cat([q @ k.transpose(1, 2),", "k, v = (torch.cat(x, 1) for x in ((k, own_k), (v, own_v)))\n    scores = torch.cat([q @ k.transpose(1, 2),"),
    ],
)  # fmt: skip
@torch.no_grad()
def test_faults_in_the_layer_are_seen(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, boxes = asked()
    own = model.prompter
    want = by_torch(own, tokens, own.box(sinusoids(boxes, own.frequencies)))
    monkeypatch.setattr(Prompter, "ask", broken(Prompter.ask, old, new))
    assert (normalize(model.regions(tokens, boxes), dim=-1) - want).abs().max() > 20 * NOISE


@torch.no_grad()
def test_a_prompt_does_not_depend_on_those_beside_it() -> None:
    model, tokens, boxes = asked(rows=17)
    every = model.regions(tokens, boxes)
    for rows in (1, 3):
        torch.testing.assert_close(model.regions(tokens, boxes[:, :rows]), every[:, :rows], rtol=0, atol=1e-5)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.regions(tokens, boxes[:, order]), every[:, order], rtol=0, atol=1e-5)


@torch.no_grad()
def test_corners_become_waves() -> None:
    found = sinusoids(torch.tensor([0.25, 0.0, 1.0, 0.5]), 3)
    angles = [math.pi * 2**k * x for x in (0.25, 0, 1, 0.5) for k in range(3)]
    want = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)
    # as exact at the finest wave as at the first: sin(64 pi x) in float32 would be 1e-5 off
    x = torch.rand(1000, 4)
    exact = sinusoids(x.double(), 8)
    torch.testing.assert_close(sinusoids(x, 8).double(), exact, rtol=0, atol=1e-6)
    assert (
        broken(prompter.sinusoids, "turns - 2 * torch.floor(turns / 2)", "turns")(x, 8) - exact
    ).abs().max() > 5e-6


@torch.no_grad()
def test_a_point_is_a_box_without_an_extent() -> None:
    model, tokens, _ = asked()
    points = torch.tensor([[[0.2, 0.3, 0.2, 0.3], [0.8, 0.3, 0.8, 0.3]]]).expand(2, -1, -1)
    found = normalize(model.regions(tokens, points), dim=-1)
    assert torch.isfinite(found).all()
    assert (found[:, 0] - found[:, 1]).norm(dim=-1).min() > 0.01


def test_it_saves_and_loads(tmp_path: Path) -> None:
    source = prompted_source()
    source = replace(source, pooling=source.model.config.pooling)
    assert_saves_and_loads(source, tmp_path / "model")
    again = load_source(str(tmp_path / "model")).model
    model, tokens, boxes = asked()
    with torch.no_grad():
        assert torch.equal(again.regions(tokens, boxes), model.regions(tokens, boxes))


@torch.no_grad()
def test_it_starts_from_the_towers_last_block() -> None:
    """A prompter that was not trained reads the values that the class token read, and looks for them where it is asked."""
    source = clip_source(layers=1)
    model = PromptedClip.of(source.model)
    assert model.image is source.model.image
    last = source.model.image.blocks[-1].state_dict()
    own, width = model.prompter.block.state_dict(), last["norm1.weight"].numel()
    for state in (own, last):
        for key in ("attention.qkv.weight", "attention.qkv.bias"):
            state[key] = state[key][2 * width :]
    torch.testing.assert_close(own, last, rtol=0, atol=0)
    assert torch.equal(model.prompter.projection.weight, source.model.image.projection.weight)


@torch.no_grad()
def test_an_untrained_prompter_looks_into_its_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes of 2 x 2 of 4 x 4 patches: the share of what is looked at there, which would be 0.25 of a prompter that looks evenly."""
    image = replace(clip_source(layers=1).model.config.image, image_size=(32, 32), patch_size=8)
    image = replace(image, blocks=replace(image.blocks, width=96, heads=3))
    torch.manual_seed(0)
    own, tower = Prompter(image, 24, 8, places=True), ImageTower(image, 24)
    start_from(own, tower)
    corners = torch.tensor([(x, y, x + 0.5, y + 0.5) for y in (0, 0.25, 0.5) for x in (0, 0.25, 0.5)])
    shares: list[torch.Tensor] = []
    kept = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda x, dim: shares.append(kept(x, dim)) or shares[0])
    own.ask(torch.randn(1, 17, 96), own.of_boxes(corners)[None], image)
    looked = shares[0][0, :, 1:17].view(9, 4, 4)
    inside = [looked[i, i // 3 : i // 3 + 2, i % 3 : i % 3 + 2].sum().item() for i in range(9)]
    assert min(inside) > 0.5
    assert shares[0][..., -1].max() < 0.2  # at itself


@torch.no_grad()
def test_a_checkpoint_without_places_answers_as_it_did() -> None:
    config = prompted_source().model.config
    told = config.to_json()
    del told["places"]
    old = PromptedConfig.from_json(told)
    torch.manual_seed(0)
    model, boxes = PromptedClip(old).eval(), asked()[2]
    assert not [name for name in model.state_dict() if "place" in name]
    tokens = model.tokens(fixed_pixels(2, 32, 32))
    want = by_torch(model.prompter, tokens, model.prompter.of_boxes(boxes))
    torch.testing.assert_close(normalize(model.regions(tokens, boxes), dim=-1), want, rtol=0, atol=NOISE)


@torch.no_grad()
def test_places_follow_the_resolution() -> None:
    source = at_resolution(prompted_source(), (48, 64))
    model = source.model
    assert isinstance(model, PromptedClip)
    places = model.prompter.places(model.config.image)
    rows, columns = model.config.image.grid
    assert (rows, columns) == (6, 8)
    assert places.shape == (1 + rows * columns, 48)
    assert not places[0].any()
    tokens = model.tokens(fixed_pixels(1, 48, 64))
    assert model.regions(tokens, torch.tensor([[[0.1, 0.2, 0.5, 0.6]]])).shape == (1, 1, 24)


def test_towers_without_tokens_are_refused() -> None:
    with pytest.raises(
        InputError, match="a prompter asks a plain vision transformer, the image tower is a ResNetTower"
    ):
        PromptedClip.of(clip_source("resnet").model)
