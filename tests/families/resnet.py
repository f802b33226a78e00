"""CLIP's ResNets, as open_clip writes them. Each block of a stage is alike, so "real" has one a stage."""

from __future__ import annotations

from tests.families.openclip_models import write

TINY = {"layers": [1, 2, 1, 1], "width": 16, "image_size": 64}

# RN50's pixels stand for all. At larger sizes Pillow's resize of a crop is 2 levels of 255 from the crop of its resize, in one
# value of two million: at 384 in 12 values of 50 pictures, at 224 in none.
MODELS = {
    name: write(name, tag="openai", real={"layers": [1, 2, 1, 1]}, tiny=TINY, pixels=name == "RN50-quickgelu")
    for name in ("RN50-quickgelu", "RN50x16-quickgelu")
}
