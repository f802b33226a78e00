"""Models at another picture size: positions against Pillow's and OpenCLIP's resampling, and what cannot be had."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgeclip.bundle import Preprocessing
from edgeclip.errors import InputError
from edgeclip.models import resolution
from edgeclip.models.clip import ImageTower
from edgeclip.models.resolution import at_resolution, parse_size, resample_grid
from edgeclip.models.timm_tower import TimmConfig, TimmTower
from tests.export.sources import IMAGE, clip_source, nano_source
from tests.mutants import broken

made_up = cache(clip_source)
PICTURES = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 3, 64, 96)).astype(np.float32))


@pytest.mark.parametrize("new", [(6, 9), (3, 3), (4, 5)])
def test_positions_are_resampled_as_pillow_does_it(new: tuple[int, int]) -> None:
    made = np.random.default_rng(0).normal(size=(1 + 4 * 5, 3)).astype(np.float32)
    found = resample_grid(torch.from_numpy(made), (4, 5), new, 1).numpy()
    np.testing.assert_array_equal(found[0], made[0])
    for channel in range(3):
        grid = Image.fromarray(made[1:, channel].reshape(4, 5).copy())
        want = np.asarray(grid.resize(new[::-1], Image.Resampling.BICUBIC))
        np.testing.assert_allclose(found[1:, channel].reshape(new), want, atol=1e-5)
        assert new == (4, 5) or np.ptp(want) > 0.5


@pytest.mark.parametrize(
    ("old", "new"),
    [("antialias=True", "antialias=False"), ("position[prefix:].T", "position[prefix:].flip(0).T")],
)
def test_another_resampling_would_be_seen(old: str, new: str) -> None:
    mutant = broken(resample_grid, old, new)
    position = torch.from_numpy(np.random.default_rng(0).normal(size=(21, 3)))
    right = resample_grid(position, (4, 5), (3, 3), 1)
    assert (mutant(position, (4, 5), (3, 3), 1) - right).abs().max() > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("size", [(48, 48), (24, 24)])
def test_positions_are_openclips(size: tuple[int, int]) -> None:
    from open_clip.model import resize_pos_embed

    source = clip_source()
    tower: Any = source.model.image
    state = {"visual.positional_embedding": tower.position.detach().clone()}
    grid = (size[0] // 8, size[1] // 8)
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
    found: Any = at_resolution(source, size).model.image
    torch.testing.assert_close(found.position, state["visual.positional_embedding"], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("shape", ["openai", "siglip", "resnet", "coca-avg"])
def test_the_model_takes_pictures_of_the_new_size_and_is_itself_at_the_old(shape: str) -> None:
    source = made_up(shape)
    wide = at_resolution(source, (64, 96))
    assert wide.preprocessing is not None
    assert (wide.preprocessing.size, wide.preprocessing.resize) == ((64, 96), 0)
    assert wide.model.encode_image(PICTURES).shape == (2, source.embedding_dim)
    assert wide.model.text is source.model.text
    assert wide.model.image.config.image_size == (64, 96)  # type: ignore[union-attr, union-attr]
    small = PICTURES[:, :, :32, :32]
    want = source.model.encode_image(small)
    assert source.preprocessing is not None
    assert source.preprocessing.size == (32, 32)
    assert at_resolution(source, (32, 32)) is source
    assert torch.isfinite(want).all()


@torch.no_grad()
def test_it_is_a_model_of_that_size_with_resampled_positions() -> None:
    tower: Any = clip_source().model.image
    made = ImageTower(replace(IMAGE, image_size=(64, 96), blocks=tower.config.blocks), 24).eval()
    state = {**tower.state_dict(), "position": resample_grid(tower.position, (4, 4), (8, 12), 1)}
    made.load_state_dict(state)
    found = at_resolution(clip_source(), (64, 96)).model.encode_image(PICTURES)
    torch.testing.assert_close(found, made(PICTURES), rtol=0, atol=1e-6)


def test_the_shorter_side_keeps_its_proportion_to_the_crop() -> None:
    spec = Preprocessing((224, 224), "shortest_crop", "bicubic", (0, 0, 0), (1, 1, 1), resize=256)
    assert resolution._preprocessing(spec, (336, 448)).resize == 384
    assert resolution._preprocessing(replace(spec, resize=0), (336, 336)).resize == 0


@pytest.mark.parametrize(("text", "size"), [("256", (256, 256)), ("256x320", (256, 320))])
def test_sizes_are_read(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "256x", "-32", "256×320", "1e3"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--resolution: expected 256, or 256x320 \(height first\), got"):
        parse_size(text)


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ("openai", (36, 32), "--resolution 36x32: expected multiples of 8 pixels, the side of the tower's patches"),
        ("openai", (0, 32), "--resolution 0x32: expected multiples of 8"),
        ("resnet", (48, 48), "--resolution 48x48: expected multiples of 32 pixels"),
        ("nano", (48, 48), "--resolution 48x48: a NanoImage takes pictures of 32x32 only"),
        ("text", (48, 48), "--resolution: made-up has no image tower"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_said_in_one_line(shape: str, size: tuple[int, int], message: str) -> None:
    source = nano_source() if shape == "nano" else made_up("openai" if shape == "text" else shape)
    if shape == "text":
        source = replace(source, preprocessing=None)
    with pytest.raises(InputError, match=message):
        at_resolution(source, size)


@pytest.mark.parity
@torch.no_grad()
@pytest.mark.parametrize(("model", "fits"), [("convnext_atto", True), ("vit_tiny_patch16_224", False)])
def test_a_tower_of_timm_is_asked_itself(model: str, fits: bool) -> None:
    source = clip_source()
    config = TimmConfig(model, (224, 224))
    source.model.image = TimmTower(config, 24).eval()
    assert source.preprocessing is not None
    source = replace(source, preprocessing=replace(source.preprocessing, size=(224, 224)))
    if fits:
        made: Any = at_resolution(source, (64, 96)).model
        assert made.image.config.image_size == (64, 96)
        assert made.encode_image(PICTURES).shape == (2, 24)
    else:
        with pytest.raises(InputError, match=f"--resolution 64x96: {model} takes pictures of 224x224 only"):
            at_resolution(source, (64, 96))
