"""CLIP's ResNets, as open_clip writes them. Each block of a stage is alike, so "real" has one a stage."""

from __future__ import annotations

from tests.families.openclip_models import write

TINY = {"layers": [1, 2, 1, 1], "width": 16, "image_size": 64}

MODELS = {
    name: write(name, tag="openai", real={"layers": [1, 2, 1, 1]}, tiny=TINY)
    for name in ("RN50-quickgelu", "RN50x16-quickgelu")
}
