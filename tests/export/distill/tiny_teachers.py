"""Teachers whose embeddings take milliseconds, of different sizes, filters and tokenizers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.export.distill.teachers import SourceTeacher, Teachers
from edgeclip.models.source import Source
from edgeclip.models.training.starts import start
from tests.export.sources import clip_source
from tests.training.tiny import tiny

CPU = torch.device("cpu")
SQUASHED = Preprocessing((16, 16), "squash", "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@cache
def small() -> Source:
    """16 pixels, squashed, bilinear, 16 wide, its tokenizer learned from captions."""
    torch.manual_seed(3)
    source = start(tiny(preprocessing=SQUASHED))
    with torch.no_grad():
        for parameter in source.model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        source.model.logit_scale.fill_(2.5)
    return replace(source, model=source.model.eval())


@cache
def large() -> Source:
    """32 pixels, cropped, bicubic, 24 wide, bytes as tokens."""
    return clip_source(layers=1, digest="large")


def teachers(*sources: Source) -> Teachers:
    """As `open_teachers` gives them."""
    return Teachers(tuple(SourceTeacher(source, CPU) for source in sources or (small(),)))


def faulty(monkeypatch: Any, name: str, change: Any) -> Teachers:
    """One teacher whose method `name` gives what `change` makes of its rows."""
    teacher = SourceTeacher(small(), CPU)
    method = getattr(teacher, name)
    monkeypatch.setattr(teacher, name, lambda inputs: change(method(inputs)))
    return Teachers((teacher,))
