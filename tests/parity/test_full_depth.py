"""Full-depth models of random weights, written by the original libraries, against those libraries. `make parity`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeclip.models.sources import load_source
from tests.checkpoints import DEPTHS, openclip_config, write_hf, write_openclip
from tests.models.agreement import TOLERANCE, assert_agrees, hf_outputs, inputs, our_outputs, worst
from tests.parity.report import write_report

pytestmark = pytest.mark.parity
ARCHS = ("ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14", "ViT-L-14-336")
FIGURES: list[tuple[str, str, str, str]] = []


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[None]:
    """Write the figures once all models are through."""
    yield
    if len(FIGURES) == len(DEPTHS) + len(ARCHS):
        write_report(
            "parity.md",
            "Parity with the original libraries, full depth",
            "Largest absolute difference of unit vectors, fp32, the same pixels and ids on both sides; "
            f"tolerance {TOLERANCE:.0e}.",
            ("Library", "Model", "image", "text"),
            FIGURES,
        )


@pytest.mark.parametrize("size", DEPTHS)
def test_transformers(size: str, tmp_path: Path) -> None:
    model = write_hf(tmp_path, size, layers=DEPTHS[size])
    source = load_source(str(tmp_path))
    pixels, ids = inputs(source)
    theirs, ours = hf_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids)
    assert_agrees(source, theirs, ours)
    image, text = worst(theirs, ours)
    FIGURES.append(("transformers", size, f"{image:.1e}", f"{text:.1e}"))


@pytest.mark.parametrize("arch", ARCHS)
def test_open_clip(arch: str, tmp_path: Path) -> None:
    model = write_openclip(tmp_path, openclip_config(arch, layers=None))
    source = load_source(str(tmp_path))
    pixels, ids = inputs(source)
    theirs, ours = our_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids)
    assert_agrees(source, theirs, ours)
    image, text = worst(theirs, ours)
    FIGURES.append(("open_clip", arch, f"{image:.1e}", f"{text:.1e}"))
