"""Every family through the whole chain: load, export, verify, classify."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import edgeclip
from edgeclip.export.api import export_bundle
from edgeclip.export.samples import made_up_pictures
from edgeclip.models.families import FAMILIES
from edgeclip.models.sources import load_source
from tests.export.sources import one_tower
from tests.families import CHAIN, models, rows, tiered
from tests.runtime.tensorrt.graphs import why_not_read

MODELS, ROWS = models(), rows()
FAMILY = {family.name: family for family in FAMILIES}
LABELS = ["a cat", "two dogs", "an empty street"]
# Their text towers are open_clip's own, as that of RN50-quickgelu is; `make parity` exports them with it, at full depth.
PICTURES_ALONE = {"MobileCLIP-S1", "convnext_base_w", "EVA02-B-16"}


@pytest.mark.parametrize("name", tiered(CHAIN.__contains__))
def test_export_verify_classify(name: str, tmp_path: Path) -> None:
    written = MODELS[name](tmp_path / "source", "tiny")
    source = load_source(written.spec, **(written.load or {}))
    if name in PICTURES_ALONE:
        source, written = one_tower(source, "image"), replace(written, text=None)
    row = FAMILY[ROWS[name]]
    assert source.pooling in row.pooling
    assert source.text is None or source.preprocessing is None or source.activation == row.scores
    report = export_bundle(source, tmp_path / "bundle")  # verifies the bundle
    for variant in report.bundle.manifest.variants:
        assert variant.requires["tensorrt"] == ("10.16" if variant.axes.attention == "op" else "10.3")
        if find_spec("tensorrt_rtx"):
            assert why_not_read(report.bundle.path(variant.files[0])) == ""
    with edgeclip.load(tmp_path / "bundle") as model:
        assert {variant.tower for variant in report.bundle.manifest.variants} == {
            kind for kind in ("image", "text") if getattr(source.model, kind) is not None
        }
        pictures = made_up_pictures(3)
        if written.image is not None:
            from edgeclip.runtime.images import preprocess

            assert source.preprocessing is not None
            pixels = torch.from_numpy(
                np.stack([preprocess(picture, source.preprocessing) for picture in pictures])
            )
            with torch.no_grad():
                want = normalize(written.image(pixels), dim=-1).numpy()
            np.testing.assert_allclose(
                model.embed_pixels(pixels.numpy()), want, rtol=0, atol=2 * written.tolerance
            )
        if written.text is not None:
            ids = torch.from_numpy(model.encode_texts(LABELS).input_ids).long()
            with torch.no_grad():
                want = normalize(written.text(ids), dim=-1).numpy()
            np.testing.assert_allclose(model.embed_texts(LABELS), want, rtol=0, atol=2 * written.tolerance)
        if written.image is not None and written.text is not None:
            results = model.classify(pictures, LABELS)
            total = [sum(result.scores) for result in results]
            if source.activation == "softmax":
                assert total == pytest.approx([1.0] * 3, abs=1e-5)
            assert all(0 <= result.score <= 1 for result in results)


def test_every_family_of_the_table_is_tested() -> None:
    assert set(ROWS.values()) == set(FAMILY)
    assert set(MODELS) >= CHAIN > PICTURES_ALONE
