"""Every family through the whole chain: load, export, verify, classify."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import normalize

import edgeclip
from edgeclip.export.api import export_bundle
from edgeclip.export.samples import made_up_pictures
from edgeclip.models.families import FAMILIES
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.runtime.model import Model
from tests.families import CHAIN, Written, models, rows, tiered
from tests.runtime.tensorrt.graphs import why_not_read

MODELS, ROWS = models(), rows()
FAMILY = {family.name: family for family in FAMILIES}
LABELS = ["a cat", "two dogs", "an empty street"]


@pytest.mark.parametrize("name", tiered(CHAIN.__contains__))
def test_export_verify_classify(name: str, tmp_path: Path) -> None:
    written = MODELS[name](tmp_path / "source", "tiny")
    source = load_source(written.spec, **(written.load or {}))
    row = FAMILY[ROWS[name]]
    assert source.pooling.split(" top ")[0] in row.pooling, "how many experts a token takes follows it"
    assert source.text is None or source.preprocessing is None or source.activation == row.scores
    report = export_bundle(source, tmp_path / "bundle")  # verifies the bundle
    for variant in report.bundle.manifest.variants:
        if variant.axes.moe == "gather":  # its sizes depend on the data: for onnxruntime alone
            assert variant.requires["tensorrt"] == "none"
            continue
        assert variant.requires["tensorrt"] == ("10.16" if variant.axes.attention == "op" else "10.3")
        if find_spec("tensorrt_rtx"):
            assert why_not_read(report.bundle.path(variant.files[0])) == ""
    with edgeclip.load(tmp_path / "bundle") as model:
        assert {variant.tower for variant in report.bundle.manifest.variants} == {
            kind for kind in ("image", "text", "detector") if getattr(source.model, kind, None) is not None
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
        if written.detect is not None:
            for picture in pictures:
                check_detections(model, source, written, picture)
        if written.image is not None and written.text is not None:
            results = model.classify(pictures, LABELS)
            total = [sum(result.scores) for result in results]
            if source.activation == "softmax":
                assert total == pytest.approx([1.0] * 3, abs=1e-5)
            assert all(0 <= result.score <= 1 for result in results)


def check_detections(model: Model, source: Source, written: Written, picture: NDArray[np.uint8]) -> None:
    """All that the runtime finds in a picture is what the library, with its own tokenizer and pixels, finds there."""
    assert written.detect is not None
    assert written.prepare is not None
    assert written.tokenize is not None
    assert source.preprocessing is not None
    height, width = picture.shape[:2]
    pixels = torch.from_numpy(written.prepare(Image.fromarray(picture)))[None]
    with torch.no_grad():
        want = written.detect(pixels, torch.from_numpy(written.tokenize(LABELS)))
    sides = (width, height) if source.preprocessing.mode == "squash" else (max(height, width),) * 2
    edge = torch.tensor([width, height])
    corners = want.boxes[0].reshape(-1, 2, 2) * torch.tensor(sides)
    centres, cut = corners.mean(dim=1), corners.clamp(torch.zeros(2), edge)
    # what lies in the padding is left out
    inside = ((centres >= 0) & (centres <= edge) & (cut[:, 1] > cut[:, 0])).all(dim=1)
    boxes, scores = cut[inside].flatten(1).numpy(), want.scores[0, inside].numpy()
    found = model.detect(picture, LABELS, threshold=0.0, nms_iou=1.0, max_detections=10_000)
    assert len(found) == scores.size > 0
    for index in range(len(LABELS)):
        mine = found.label_indices == index
        apart = np.abs(found.boxes[mine][:, None] - boxes[None]).max(axis=-1) / max(height, width)  # (Q, Q)
        pairs = apart.argmin(axis=1)
        assert len(set(pairs.tolist())) == len(boxes)
        assert apart.min(axis=1).max() < 1e-5  # measured: 3e-7 of the longer side
        np.testing.assert_allclose(
            found.scores[mine], scores[pairs, index], rtol=0, atol=1e-5
        )  # measured: 2e-6


def test_every_family_of_the_table_is_tested() -> None:
    assert set(ROWS.values()) == set(FAMILY)
    assert set(MODELS) > CHAIN
