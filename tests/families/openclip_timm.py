"""open_clip's models with image towers of timm: ConvNeXt, ViTamin, EVA-02, Perception Encoder, and those that nobody published.

timm chooses a model's sizes by its name. Smaller ones are registered with timm under names of their own, by its own functions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.checkpoints import openclip_config, write_openclip
from tests.families import Size, Write, Written
from tests.families.openclip_models import TINY_TEXT, of


def shallow(name: str, **changes: Any) -> str:
    """The name under which timm makes `name` with other settings."""
    import timm

    new = f"{name}_{zlib.crc32(repr(changes).encode()):x}"
    if not timm.is_model(new):

        def make(pretrained: bool = False, **settings: Any) -> Any:
            return timm.model_entrypoint(name)(pretrained, **{**changes, **settings})

        make.__name__ = new
        timm.models.register_model(make)
    return new


def write(
    arch: str,
    *,
    real: dict[str, Any],
    tiny: dict[str, Any],
    side: int = 0,
    tag: str = "",
    tokenizer: Callable[[Path], int] | None = None,
    image: dict[str, Any] | None = None,
) -> Write:
    """A model of open_clip's.

    Args:
        real, tiny: settings of the trunk at these sizes, over timm's own.
        side: of the pictures at size "tiny"; 0 = that of the architecture.
        tag: whose preprocessing it has; "" = open_clip's default.
        tokenizer: writes that of Hugging Face which the config names, and gives the rows that it needs; None = open_clip's own.
        image: settings of the image tower over the architecture's own.
    """
    from open_clip.pretrained import get_pretrained_cfg

    preprocessing = get_pretrained_cfg(arch, tag) if tag else None

    def written(folder: Path, size: Size) -> Written:
        config = openclip_config(arch, layers=None, image=image)
        if size != "full":
            config["text_cfg"].update({"layers": 2, **(TINY_TEXT if size == "tiny" else {})})
            trunk = real if size == "real" else tiny
            config["vision_cfg"]["timm_model_name"] = shallow(
                config["vision_cfg"]["timm_model_name"], **trunk
            )
        if size == "tiny":
            config["embed_dim"] = TINY_DIM
            config["vision_cfg"]["image_size"] = side or config["vision_cfg"]["image_size"]
        if tokenizer is not None:
            config["text_cfg"]["vocab_size"] = tokenizer(folder)
        bias = config.pop("init_logit_bias", None)
        model = write_openclip(folder, config, bias=bias, preprocessing=preprocessing)
        # open_clip's own tokenizer is tested with its own towers
        return of(folder, model, with_ids=size == "full" or (size == "real" and tokenizer is not None))

    return written


def _vitamin() -> Any:
    from timm.models.vitamin import VitCfg

    return VitCfg(embed_dim=(16, 24, 32), depths=(1, 1, 1), stem_width=16)


TINY_DIM = 64  # of a vision transformer whose pooled width is the embedding's
VIT: dict[str, Any] = {"depth": 2, "embed_dim": TINY_DIM, "num_heads": 4, "img_size": 32}
CONVNEXT: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)}
SHALLOW: dict[str, Any] = {"depth": 2}

MODELS = {
    "convnext_base_w": write(
        "convnext_base_w", tag="laion2b_s13b_b82k", real={"depths": (1, 1, 2, 1)}, tiny=CONVNEXT, side=64
    ),
    "convnext_large_d": write(
        "convnext_large_d",
        tag="laion2b_s26b_b102k_augreg",
        real={"depths": (1, 1, 1, 1)},
        tiny=CONVNEXT,
        side=64,
    ),
    "ViTamin-S": write(
        "ViTamin-S",
        tag="datacomp1b",
        real=SHALLOW,
        tiny={"depth": 2, "embed_dim": 32, "num_heads": 4, "img_size": 64, "embed_cfg": _vitamin()},
        side=64,
    ),
    "EVA02-B-16": write("EVA02-B-16", tag="merged2b_s8b_b131k", real=SHALLOW, tiny=VIT, side=32),
    "PE-Core-T-16-384": write("PE-Core-T-16-384", tag="meta", real=SHALLOW, tiny=VIT, side=32),
    "vit_relpos_medium_patch16_cls_224": write(
        "vit_relpos_medium_patch16_cls_224", real=SHALLOW, tiny=VIT, side=32
    ),
    "swin_base_patch4_window7_224": write(
        "swin_base_patch4_window7_224",
        real={"depths": (2, 1, 1, 1)},
        tiny={"depths": (2,), "embed_dim": 16, "num_heads": (2,), "img_size": 56},
        side=56,
    ),
}
