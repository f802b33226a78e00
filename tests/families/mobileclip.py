"""MobileCLIP and MobileCLIP 2 in open_clip's form: FastViT with parallel training branches, and two vision transformers."""

from __future__ import annotations

from typing import Any

from tests.families.openclip_timm import SHALLOW, VIT, write

TINY: dict[str, Any] = {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 64)}
TINY_S3: dict[str, Any] = {"layers": (1, 1, 1, 1, 1), "embed_dims": (16, 32, 64, 64, 128)}

MODELS = {
    "MobileCLIP-S1": write(
        "MobileCLIP-S1", tag="datacompdr", real={"layers": (1, 1, 2, 1)}, tiny=TINY, side=64
    ),
    "MobileCLIP2-S3": write(
        "MobileCLIP2-S3", tag="dfndr2b", real={"layers": (1, 1, 1, 1, 1)}, tiny=TINY_S3, side=64
    ),
    # the width of its convolutions is fixed
    "MobileCLIP-B": write(
        "MobileCLIP-B", tag="datacompdr", real=SHALLOW, tiny={**SHALLOW, "img_size": 32}, side=32
    ),
    "MobileCLIP2-L-14": write(
        "MobileCLIP2-L-14", tag="dfndr2b", real=SHALLOW, tiny={**VIT, "patch_size": 16}, side=32
    ),
}
