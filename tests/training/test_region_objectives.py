"""CLOC's losses by hand, and CLIM's, which is InfoNCE of tiles and singles."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.clip import Clip
from edgeclip.models.regions import RegionEncoder
from edgeclip.models.training.data.mosaics import MosaicBatch
from edgeclip.models.training.encode_regions import encode_mosaics
from edgeclip.models.training.objectives import region_text as module
from edgeclip.models.training.objectives.grounding import grounding
from edgeclip.models.training.objectives.info_nce import info_nce
from edgeclip.models.training.objectives.region_text import region_text
from tests.training.tiny import TINY

TEN = torch.tensor(10.0, dtype=torch.float64)


def rows(*shape: int, seed: int = 0) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(made, dim=-1)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int64)


def test_one_region_each_is_info_nce() -> None:
    regions, texts = rows(8, 1, 16), rows(8, 1, 16, seed=1)
    want = info_nce(regions[:, 0], texts[:, 0], TEN).item()
    assert region_text(regions, texts, ones(8, 1), TEN).item() == pytest.approx(want, rel=1e-12)


def test_orthonormal_regions() -> None:
    apart = torch.eye(8, dtype=torch.float64).view(4, 2, 8)
    want = math.log(1 + 7 * math.exp(-10))  # 3.177e-4
    assert region_text(apart, apart, ones(4, 2), TEN).item() == pytest.approx(want, rel=1e-9)


def test_regions_that_are_not_told_apart_cost_ln_of_their_number() -> None:
    same = F.normalize(torch.ones(4, 2, 8, dtype=torch.float64), dim=-1)
    texts = torch.eye(8, dtype=torch.float64).view(4, 2, 8)
    # Every logit is 10 / sqrt(8): ln 8 in both directions.
    assert region_text(same, texts, ones(4, 2), TEN).item() == pytest.approx(math.log(8), abs=1e-12)


def test_texts_that_are_all_alike_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    module._tell.cache_clear()
    apart = torch.eye(8, dtype=torch.float64).view(4, 2, 8)
    with caplog.at_level(logging.WARNING):
        region_text(apart, apart, ones(4, 2), TEN)
        region_text(
            apart[:1, :1], apart[:1, :1], ones(1, 1), TEN
        )  # one region alone has no negatives to lose
        assert not caplog.messages
        for _ in range(2):
            loss = region_text(apart, apart[:1, :1].expand(4, 2, -1), ones(4, 2), TEN)
    assert loss == 0  # nothing is left to be told apart
    (message,) = caplog.messages
    assert "nearly all alike (cosine above 0.9)" in message


def test_by_hand_with_a_filtered_negative() -> None:
    # Texts 0 and 1 have cosine 0.96 and are no negatives of each other; text 2 is orthogonal to 0 and has 0.28 with 1. Scale 5.
    texts = torch.tensor([[1.0, 0.0], [0.96, 0.28], [0.0, 1.0]], dtype=torch.float64)
    regions = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    # cosines, row = region: [1, .96, 0], [.6, .8, .8] with .6*.96+.8*.28 = .8, [0, .28, 1]
    by_region = [
        math.log(1 + math.exp(-5)),
        math.log(2),
        math.log(1 + math.exp(-5) + math.exp(5 * (0.28 - 1))),
    ]
    by_text = [
        math.log(1 + math.exp(-5)),
        math.log(1 + math.exp(5 * (0.28 - 0.8))),
        math.log(1 + math.exp(-5) + math.exp(-1)),
    ]
    want = (sum(by_region) + sum(by_text)) / 6
    value = region_text(regions[:, None], texts[:, None], ones(3, 1), TEN / 2).item()
    assert value == pytest.approx(want, rel=1e-9)


def test_texts_that_say_the_same_are_no_negatives() -> None:
    regions, texts = rows(4, 2, 16), rows(1, 1, 16).expand(4, 2, 16)
    assert region_text(regions, texts, ones(4, 2), TEN).item() == 0.0


def test_the_filter_takes_no_gradient() -> None:
    texts = rows(3, 2, 4, seed=2).requires_grad_()
    regions = rows(3, 2, 4)
    region_text(regions, texts, ones(3, 2), TEN).backward()
    assert texts.grad is not None
    given = texts.grad.clone()
    with torch.no_grad():
        flat = texts.detach().flatten(0, 1)
        apart = (flat @ flat.T <= 0.9).fill_diagonal_(True)
    again = texts.detach().clone().requires_grad_()
    logits = (TEN * regions.flatten(0, 1) @ again.flatten(0, 1).T).masked_fill(~apart, -math.inf)
    target = torch.arange(6)
    ((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2).backward()
    assert again.grad is not None
    assert torch.allclose(given, again.grad)


def test_padding_counts_nowhere_and_lambda_is_the_share_of_pictures_with_regions() -> None:
    regions, texts = rows(4, 3, 16), rows(4, 3, 16, seed=1)
    named = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    here = named.bool()
    alone = info_nce(regions[here], texts[here], TEN).item()
    assert region_text(regions, texts, named, TEN).item() == pytest.approx(alone / 2, rel=1e-12)
    spoilt = torch.where(here[..., None], regions, torch.full_like(regions, 7.0))
    assert region_text(spoilt, texts, named, TEN).item() == pytest.approx(alone / 2, rel=1e-12)


@pytest.mark.parametrize("loss", ["region_text", "grounding"])
def test_no_region_text_is_zero_with_a_gradient(loss: str) -> None:
    regions, boxes = rows(4, 3, 16).requires_grad_(), torch.rand(4, 3, 4).requires_grad_()
    none = torch.zeros(4, 3, dtype=torch.int64)
    value = (
        region_text(regions, rows(4, 3, 16), none, TEN)
        if loss == "region_text"
        else grounding(boxes, torch.rand(4, 3, 4), none)
    )
    value.backward()
    assert value.item() == 0.0
    gradient = regions.grad if loss == "region_text" else boxes.grad
    assert gradient is not None
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_symmetric_and_blind_to_order() -> None:
    regions, texts, named = rows(4, 2, 16), rows(4, 2, 16, seed=1), ones(4, 2)
    value = region_text(regions, texts, named, TEN).item()
    order = torch.tensor([2, 0, 3, 1])
    assert region_text(regions[order], texts[order], named, TEN).item() == pytest.approx(value, rel=1e-12)
    assert region_text(regions.flip(1), texts.flip(1), named, TEN).item() == pytest.approx(value, rel=1e-12)
    assert region_text(texts, regions, named, TEN).item() == pytest.approx(value, rel=1e-12)
    assert region_text(regions, texts[order], named, TEN).item() != pytest.approx(value, rel=1e-3)


def test_grounding_by_hand() -> None:
    true = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2]], [[0.0, 0.0, 1.0, 1.0]] * 2])
    said = true.clone()
    named = torch.tensor([[1, 1], [0, 0]])
    said[1] = 9.0  # padding
    assert grounding(said, true, named).item() == 0.0
    said[0, 0, 2] = (
        0.9  # one of the eight numbers is 0.4 off: 0.16 / 8, and half of the pictures have regions
    )
    assert grounding(said, true, named).item() == pytest.approx(0.16 / 8 / 2, rel=1e-6)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2, 8\), \(4, 3, 8\), \(4, 2\)"):
        region_text(rows(4, 2, 8), rows(4, 3, 8), ones(4, 2), TEN)
    with pytest.raises(ValueError, match=r"\(4, 2, 4\), \(4, 2, 4\), \(4, 3\)"):
        grounding(torch.rand(4, 2, 4), torch.rand(4, 2, 4), ones(4, 3))


@pytest.fixture(scope="module")
def model() -> RegionEncoder:
    torch.manual_seed(0)
    assert TINY.clip is not None
    return RegionEncoder.of(Clip(TINY.clip)).eval()


def mosaic_batch(groups: int, singles: int) -> MosaicBatch:
    made = torch.Generator().manual_seed(5)
    pictures = [torch.randn(n, 3, 16, 16, generator=made) for n in (groups, groups, groups, singles)]
    pairs = 29 * groups + singles
    ids = torch.randint(2, 300, (pairs, 6), generator=made)
    ids[:, -1] = 1
    return MosaicBatch(*pictures, ids, torch.arange(pairs))


def clim(model: RegionEncoder, batch: MosaicBatch) -> float:
    found = encode_mosaics(model, batch)
    return info_nce(found["image"], found["text"], torch.tensor(10.0)).item()


@torch.no_grad()
def test_clim_without_mosaics_is_clips_loss(model: RegionEncoder) -> None:
    batch = mosaic_batch(0, 5)
    image = F.normalize(model.encode_image(batch.singles), dim=-1)
    text = F.normalize(model.encode_text(batch.input_ids), dim=-1)
    assert clim(model, batch) == info_nce(image, text, torch.tensor(10.0)).item()


@torch.no_grad()
def test_clim_takes_each_tiles_own_caption(model: RegionEncoder) -> None:
    batch = mosaic_batch(1, 3)
    found = encode_mosaics(model, batch)
    assert found["image"].shape == found["text"].shape == (32, 16)
    # Patches are of 8 pixels and the picture of 16: each tile of the 2x2 mosaic is one patch of the dense map.
    assert torch.allclose(found["image"][:4], model.tokens(batch.twos)[0], atol=1e-6)
    assert torch.allclose(found["image"][29:], F.normalize(model.encode_image(batch.singles), dim=-1))
    value = clim(model, batch)
    order = torch.cat([torch.tensor([1, 0, 2, 3]), torch.arange(4, 32)])
    swapped = MosaicBatch(
        batch.twos, batch.threes, batch.fours, batch.singles, batch.input_ids[order], batch.groups[order]
    )
    assert clim(model, swapped) != pytest.approx(value, rel=1e-4)  # captions alone: another loss
    parts = batch.twos.unflatten(2, (2, 8)).unflatten(4, (2, 8)).clone()  # (1, 3, rows, 8, columns, 8)
    parts[:, :, 0, :, 0], parts[:, :, 0, :, 1] = (
        batch.twos[:, :, :8, 8:],
        batch.twos[:, :, :8, :8],
    )
    moved = parts.flatten(4, 5).flatten(2, 3)
    assert not torch.equal(moved, batch.twos)
    both = MosaicBatch(
        moved, batch.threes, batch.fours, batch.singles, batch.input_ids[order], batch.groups[order]
    )
    model.image.position.data.zero_()  # else a patch also says where it is
    both_value, plain = clim(model, both), clim(model, batch)
    assert both_value == pytest.approx(plain, rel=1e-5)


def test_parts_of_a_mosaic_batch_keep_tiles_with_their_captions(model: RegionEncoder) -> None:
    batch = mosaic_batch(2, 6)
    first, second = batch.split(2)
    whole = encode_mosaics(model, batch)
    halves = [encode_mosaics(model, part) for part in (first, second)]
    assert [len(part.groups) for part in (first, second)] == [32, 32]
    by_pair = {
        int(group): row for half in halves for group, row in zip(half["groups"], half["image"], strict=True)
    }
    want = {int(group): row for group, row in zip(whole["groups"], whole["image"], strict=True)}
    assert by_pair.keys() == want.keys()
    assert all(torch.allclose(by_pair[key], want[key], atol=1e-6) for key in want)
