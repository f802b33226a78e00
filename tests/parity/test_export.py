"""A full-depth ViT-B/32 that transformers saved, exported, against transformers on photographs. `make parity`."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import edgeclip
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.models.sources import load_source
from edgeclip.runtime.fidelity import cosine, max_abs, relative_distance
from tests.checkpoints import DEPTHS, write_hf
from tests.end_to_end.reference import LABELS, TEXTS, reference
from tests.parity.report import write_report
from tests.photographs import FOLDER, needs_photographs, photographs


@pytest.mark.parity
@needs_photographs
def test_vit_b32_on_all_photographs(tmp_path: Path) -> None:
    files = photographs()
    model = write_hf(tmp_path / "source", "B/32", layers=DEPTHS["B/32"])
    want = reference(model, tmp_path / "source", files)
    start, busy = time.perf_counter(), time.process_time()
    source = load_source(str(tmp_path / "source"))
    report = export_bundle(source, tmp_path / "bundle", settings=ExportSettings(images=FOLDER))
    seconds, busy = time.perf_counter() - start, time.process_time() - busy

    with edgeclip.load(report.bundle.root) as opened:
        pixels, texts = opened.embed_pixels(want.pixels), opened.embed_texts(TEXTS)
        images = opened.embed_images(files)
        results = opened.classify(files, LABELS)
    best = np.array([result.label_index for result in results])
    agree = int((best == want.scores().argmax(axis=1)).sum())
    cosines = cosine(images.astype(np.float64), want.images.astype(np.float64))
    figures: list[tuple[str, str, str]] = [
        ("export, wall clock", "below 90 s on 2 idle cores", f"{seconds:.0f} s"),
        ("export, processor time of all threads", "-", f"{busy:.0f} s"),
        ("pictures, same pixels, largest absolute difference", "1e-6", f"{max_abs(pixels, want.images):.1e}"),
        ("texts, largest absolute difference", "1e-6", f"{max_abs(texts, want.texts):.1e}"),
        ("pictures, from the files, smallest cosine", "0.9995", f"{cosines.min():.9f}"),
        ("pictures, from the files, relative distance", "-", f"{relative_distance(want.images, images):.1e}"),
        (
            f"best of {len(LABELS)} labels agrees",
            f"{len(files) - 2} of {len(files)}",
            f"{agree} of {len(files)}",
        ),
        ("size of the bundle, both flavours", "-", f"{report.to_dict()['size_bytes'] / 1e6:.0f} MB"),
    ]
    for parity in report.parities:
        assert parity.fidelity is not None
        figures.append(
            (
                f"{parity.variant} to the source, largest absolute difference",
                "1e-6",
                f"{parity.fidelity.max_abs:.1e}",
            )
        )
    steps = [(f"step: {name}", "-", f"{took:.1f} s") for name, took in report.seconds.items()]
    write_report(
        "export_b32.md",
        "Export of a ViT-B/32, full depth",
        f"A CLIPModel that transformers saved, against transformers with its own Pillow image processor and tokenizer on {len(files)} "
        f"photographs of COCO and {len(TEXTS)} texts.",
        ("Figure", "Wanted", "Measured"),
        [*figures, *steps],
    )
    assert max_abs(pixels, want.images) <= 1e-6
    assert max_abs(texts, want.texts) <= 1e-6
    assert cosines.min() >= 0.9995
    assert agree >= len(files) - 2
    assert np.ptp(images, axis=0).max() > 1e-3, "photographs make no difference"
