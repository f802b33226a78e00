"""Full-depth models of random weights, written by the original libraries, against those libraries. `make parity`.

EDGECLIP_PARITY_REPORT=FILE.md also writes the figures down.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgeclip.files import write_file
from edgeclip.models.sources import load_source
from tests.checkpoints import DEPTHS, openclip_config, write_hf, write_openclip
from tests.models.agreement import assert_agrees, hf_outputs, inputs, our_outputs, worst

pytestmark = pytest.mark.parity
FIGURES: list[tuple[str, str, float, float]] = []


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[None]:
    """Write the figures once all models are through."""
    yield
    if path := os.environ.get("EDGECLIP_PARITY_REPORT"):
        rows = "".join(
            f"| {library} | {model} | {image:.1e} | {text:.1e} |\n" for library, model, image, text in FIGURES
        )
        write_file(
            Path(path),
            "# Parity with the original libraries, full depth\n\n"
            "Largest absolute difference of unit vectors, fp32, the same pixels and ids on both sides; tolerance 1e-6. "
            f"Random weights; {platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads. "
            "Made by `make parity`.\n\n| Library | Model | image | text |\n|---|---|---|---|\n" + rows,
        )


@pytest.mark.parametrize("size", DEPTHS)
def test_transformers(size: str, tmp_path: Path) -> None:
    model = write_hf(tmp_path, size, layers=DEPTHS[size])
    source = load_source(str(tmp_path))
    pixels, ids = inputs(source)
    theirs, ours = hf_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids)
    FIGURES.append(("transformers", size, *worst(theirs, ours)))
    assert_agrees(source, theirs, ours)


@pytest.mark.parametrize("arch", ["ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14", "ViT-L-14-336"])
def test_open_clip(arch: str, tmp_path: Path) -> None:
    model = write_openclip(tmp_path, openclip_config(arch, layers=None))
    source = load_source(str(tmp_path))
    pixels, ids = inputs(source)
    theirs, ours = our_outputs(model, pixels, ids), our_outputs(source.model, pixels, ids)
    FIGURES.append(("open_clip", arch, *worst(theirs, ours)))
    assert_agrees(source, theirs, ours)
