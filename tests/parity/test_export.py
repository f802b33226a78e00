"""Exports of real widths from checkpoints that transformers wrote: photographs in, bundles out, both compared."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

import edgeclip
from edgeclip.export.api import ExportReport, ExportSettings, export_bundle
from edgeclip.models.sources import load_source
from tests.checkpoints import DEPTHS, write_hf

PHOTOGRAPHS = Path(__file__).parents[2] / ".." / "shared" / "data" / "coco64" / "images"
needs_photographs = pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"needs photographs in {PHOTOGRAPHS}")


def compared(folder: Path, layers: tuple[int, int], photographs: list[Path]) -> ExportReport:
    """Export a B/32 and hold the bundle's embeddings of files against transformers' own, processor included."""
    from transformers import CLIPImageProcessor

    model = write_hf(folder / "hf", "B/32", layers=layers)
    start = time.perf_counter()
    source = load_source(str(folder / "hf"))
    report = export_bundle(source, folder / "bundle", settings=ExportSettings(images=photographs[0].parent))
    seconds = time.perf_counter() - start
    for parity in report.parities:
        assert parity.fidelity is not None
        assert parity.fidelity.max_abs <= 1e-6
    processor = CLIPImageProcessor.from_pretrained(folder / "hf")
    with torch.no_grad():
        pixels = processor([Image.open(path).convert("RGB") for path in photographs], return_tensors="pt")
        want = normalize(model.get_image_features(**pixels).pooler_output, dim=-1).numpy()
    with edgeclip.load(report.bundle.root) as opened:
        got = opened.embed_images(photographs)
        labels = opened.embed_texts([f"a photo of {i} things" for i in range(20)])
    cosines = (got * want).sum(axis=1)
    agree = int(((got @ labels.T).argmax(axis=1) == (want @ labels.T).argmax(axis=1)).sum())
    print(f"{seconds:.0f} s; cosine min {cosines.min():.6f}; top-1 agrees on {agree} of {len(photographs)}")
    assert cosines.min() >= 0.9995
    assert agree >= len(photographs) - 2
    assert np.ptp(got, axis=0).max() > 1e-3, "photographs make no difference"
    return report


@needs_photographs
def test_two_blocks_of_real_width(tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(PHOTOGRAPHS.glob("*.jpg"))[:6]:
        (few / path.name).write_bytes(path.read_bytes())
    report = compared(tmp_path, (2, 2), sorted(few.iterdir()))
    files = {variant.id: variant.files for variant in report.bundle.manifest.variants}
    assert files["image-fp32-op"][1:] == files["image-fp32-decomposed"][1:] != ()


@pytest.mark.parity
@needs_photographs
def test_full_depth_on_all_photographs(tmp_path: Path) -> None:
    compared(tmp_path, DEPTHS["B/32"], sorted(PHOTOGRAPHS.glob("*.jpg")))
