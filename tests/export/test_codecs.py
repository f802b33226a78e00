"""Codecs at export: fitted to the rows of the comparison when there are enough pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeclip import load
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.export.codecs import FILE, write_codecs
from edgeclip.export.samples import made_up_pictures
from edgeclip.runtime.codecs import Codecs
from tests.export.sources import nano_source
from tests.vectors import clip_like


@pytest.mark.parity
def test_export_fits_codecs_to_enough_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(made_up_pictures(64)):
        Image.fromarray(picture).save(folder / f"{i:02}.png")
    settings = ExportSettings(targets=("portable",), images=folder, threads=1)
    bundle = export_bundle(nano_source(), tmp_path / "bundle", settings=settings).bundle
    with load(bundle, threads=1) as model:
        codecs = model.codecs
        assert codecs.measured["fitted_to"] == {"image": 64, "text": 38}
        rows = model.embed_images(sorted(folder.glob("*.png")))
    cosines = (codecs["int8"].decode(codecs["int8"].encode(rows)) * rows).sum(axis=1)
    np.testing.assert_allclose(cosines, 1, rtol=0, atol=5e-3)


@pytest.mark.parametrize(("images", "texts", "kinds"), [(64, 32, ("image", "text")), (64, 31, ("image",)), (63, 99, None), (None, 99, None)])  # fmt: skip
def test_what_is_enough(
    tmp_path: Path, images: int | None, texts: int, kinds: tuple[str, ...] | None
) -> None:
    from tests.runtime.toy import make_bundle

    manifest = replace(make_bundle(tmp_path / "toy").manifest, embedding_dim=16)
    rows = None if images is None else clip_like(images, 16)
    found = write_codecs(tmp_path, manifest, rows, clip_like(texts, 16, "text"))
    if kinds is None:
        assert found is manifest
        assert not (tmp_path / FILE).exists()
    else:
        assert found == replace(manifest, codecs=FILE)
        codecs = Codecs.open(tmp_path / FILE)
        assert (codecs.kinds, codecs.model_id) == (kinds, manifest.model_id)
