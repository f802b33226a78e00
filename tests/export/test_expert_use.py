"""Who takes what, told by an exported bundle, against the PyTorch model's own routers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from edgeclip import Model, load
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.models.feed_forward import recorded
from edgeclip.models.source import Source
from edgeclip.runtime.images.preprocess import preprocess
from tests.mixtures import moe_source
from tests.runtime.toy import picture

pytestmark = pytest.mark.parity  # an export of two towers: 25 s

NEAR = 1e-5  # of two logits: which comes first is then left to rounding
TEXTS = ["a cat", "a photo of a dog", "a photo of two cats and a dog on a bicycle", "a"]


@pytest.fixture(scope="module")
def source() -> Source:
    return moe_source((4, 4), (3, 2))


@pytest.fixture(scope="module")
def model(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    place = tmp_path_factory.mktemp("exported") / "bundle"
    export_bundle(source, place, settings=ExportSettings(targets=("portable",), threads=1))
    with load(place, threads=1, decode="exact") as opened:
        yield opened


def test_pictures(source: Source, model: Model) -> None:
    """Every choice of every token is PyTorch's, but for ties; shares and maps follow."""
    images = [picture(seed, 60, 44) for seed in range(6)]
    spec = model.manifest.preprocessing
    assert spec is not None
    pixels = torch.from_numpy(np.stack([preprocess(image, spec) for image in images]))
    with torch.no_grad(), recorded(source.model.image) as heard:  # type: ignore[arg-type]
        source.model.image(pixels)  # type: ignore[misc]
    use = model.expert_use(images, batch_size=4)
    routings = model.routing_of(images, batch_size=3)
    assert (use.blocks, use.experts, use.tokens) == ((0, 1), (4, 4), 6 * heard.shares[0].shape[1])
    for i, (logits, shares) in enumerate(zip(heard.logits, heard.shares, strict=True)):
        _no_ties(logits)
        assert use.chosen[i].tolist() == (shares > 0).sum(dim=(0, 1)).tolist()
        np.testing.assert_allclose(use.shares[i], shares.double().sum(dim=(0, 1)), atol=1e-3)
        patches = shares[:, 1:]  # behind the class token
        for routing, wanted in zip(routings, patches, strict=True):
            assert routing.grid is not None
            np.testing.assert_allclose(
                routing.patches(use.blocks[i]), wanted.view(*routing.grid, -1), atol=1e-5
            )
            assert routing.map_of(use.blocks[i]).ravel().tolist() == wanted.argmax(dim=-1).tolist()


def test_texts(source: Source, model: Model) -> None:
    """Each text alone, so that PyTorch sees no padding."""
    use = model.expert_use(texts=TEXTS, batch_size=3)
    chosen = np.zeros((2, 3), np.int64)
    for text in TEXTS:
        encoded = model.encode_texts([text])
        length = encoded.lengths[0] if model.manifest.text.dynamic_length else None  # type: ignore[union-attr]
        ids = torch.from_numpy(encoded.input_ids[:, :length]).long()
        end = _length(ids, source)
        with torch.no_grad(), recorded(source.model.text) as heard:  # type: ignore[arg-type]
            source.model.text(ids)  # type: ignore[misc]
        for i, (logits, shares) in enumerate(zip(heard.logits, heard.shares, strict=True)):
            _no_ties(logits)
            chosen[i, : shares.shape[-1]] += (shares[0, :end] > 0).sum(dim=0).numpy()
    assert use.chosen.tolist() == chosen.tolist()


def _no_ties(logits: torch.Tensor) -> None:
    best = logits.sort(dim=-1, descending=True).values
    if best.shape[-1] > 2:
        assert float((best[..., 1] - best[..., 2]).min()) > NEAR, (
            "the samples are to be told apart by any rounding"
        )


def _length(ids: torch.Tensor, source: Source) -> int:
    """Tokens up to the one that is pooled."""
    eos = source.text.eos_id if source.text else None
    found = torch.eq(ids[0], -1 if eos is None else eos).nonzero()
    return int(found[0]) + 1 if len(found) else ids.shape[1]
