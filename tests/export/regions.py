"""Small region encoders for the tests of export and runtime."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from edgeclip.models.clip import Clip
from edgeclip.models.prompter import PromptedClip
from edgeclip.models.regions import with_regions
from edgeclip.models.source import Source
from tests.checkpoints import roughen
from tests.export.sources import clip_source


def roi_source(shape: str = "openai", layers: int = 1, **changes: Any) -> Source:
    """A tiny CLIP with a dense map of 4 x 4 patches, 24 wide."""
    return with_regions(clip_source(shape, layers, **changes))


def prompted_source(shape: str = "openai", layers: int = 1, **changes: Any) -> Source:
    """A tiny CLIP with a prompter whose answers differ from box to box and from text to text."""
    source = clip_source(shape, layers, **changes)
    assert isinstance(source.model, Clip)
    torch.manual_seed(5)
    model = PromptedClip.of(source.model).eval()
    with torch.no_grad():  # so that boxes leave the middle
        model.prompter.ground2.weight.mul_(20)
    roughen(model.prompter, seed=3)
    return replace(source, model=model)


@cache
def source_of(kind: str) -> Source:
    """ "roi" or "prompted"."""
    return roi_source() if kind == "roi" else prompted_source()
