"""OpenCLIP's configs, read whole: a key that describes a model which edgeclip does not know is refused, never passed over.

Facts of the format follow open_clip (keys, defaults, poolings, preprocessing).
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.errors import SourceError
from edgeclip.models.loaders import common

log = logging.getLogger(__name__)

_TOP: dict[str, Any] = {
    "embed_dim": 0,
    "vision_cfg": {},
    "text_cfg": {},
    "multimodal_cfg": {},  # CoCa's captioning decoder: read by nobody here, see the loader
    "quick_gelu": False,
    "custom_text": False,
    "init_logit_scale": None,
    "init_logit_bias": None,
    "nonscalar_logit_scale": False,
    "output_dict": False,
}
# Keys that say nothing as long as they hold this.
_OFF: dict[str, Any] = {
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn"), False
    ),
    **dict.fromkeys(("scale_fc", "embed_cls"), False),
    **dict.fromkeys(("block_type", "timm_model_name", "hf_model_name", "tokenizer_mode"), None),
}
_NULLS: dict[str, Any] = {
    **dict.fromkeys(("timm_pool", "timm_proj", "hf_pooler_type"), ""),
    "hf_proj_type": "none",
}  # what null says where it is not the default
_OF_ANOTHER_TOWER = ("timm_", "hf_")  # settings of a tower whose name the section does not give


@dataclass(frozen=True)
class Shared:
    """What a tower's section does not say itself."""

    embed_dim: int
    quick_gelu: bool
    where: str  # names the section in messages
    tensors: Collection[str] = ()  # names in the checkpoint, where there is one


def top_level(own: Any, where: str) -> dict[str, Any]:
    """A `model_cfg` over open_clip's defaults. Raises SourceError if it is none, or has a key that edgeclip does not know."""
    top = section(own, _TOP, where)
    if not (top["embed_dim"] and own.keys() >= {"vision_cfg", "text_cfg"}):
        raise SourceError(
            f"{where}: expected embed_dim, vision_cfg and text_cfg. This is not an OpenCLIP config."
        )
    return top


def section(own: Any, keys: dict[str, Any], where: str) -> dict[str, Any]:
    """A section over its defaults. Raises SourceError on a key that is not one of `keys`, or a value of another kind."""
    if not isinstance(own, dict):
        raise SourceError(f"{where}: expected an object, got {own!r}. The file is damaged: fetch it again.")
    for key, value in own.items():
        known = key in keys or (key in _OFF and value == _OFF[key])
        others = (prefix for prefix in _OF_ANOTHER_TOWER if not own.get(f"{prefix}model_name"))
        if not known and not (key.startswith(tuple(others)) and key not in _OFF):
            raise SourceError(f"{where}.{key} = {value!r} describes a model that edgeclip cannot load yet.")
    stated = {key: _NULLS.get(key) if own[key] is None else own[key] for key in own if key in keys}
    return common.overlay(keys, stated, where)


def one_of(value: Any, allowed: tuple[str, ...] | range, where: str) -> Any:
    """The value, if it is one of those allowed. Raises SourceError otherwise."""
    if value not in allowed:
        expected = f"one of {', '.join(allowed)}" if isinstance(allowed, tuple) else "a number of 0-255"
        raise SourceError(f"{where} is {value!r}, expected {expected}.")
    return value


def read_preprocessing(data: Any, image_size: tuple[int, int], where: str) -> Preprocessing:
    """A `preprocess_cfg` as a spec. The tower's `image_size` (H, W) wins over the size that it names."""
    if not isinstance(data, dict):
        raise SourceError(f"{where}: preprocess_cfg: expected an object, got {data!r}. The file is damaged.")
    size = common.pair(data.get("size", image_size), f"{where}: preprocess_cfg.size")
    if size != image_size:
        log.warning(
            "%s: preprocess_cfg.size is %s, the image tower takes %s: taking the tower's, as open_clip does",
            where,
            size,
            image_size,
        )
    mode = one_of(
        data.get("resize_mode") or "shortest", ("shortest", "longest", "squash"), f"{where}: resize_mode"
    )
    resample = one_of(
        data.get("interpolation") or "bicubic", ("bicubic", "bilinear", "random"), f"{where}: interpolation"
    )
    fill_color = one_of(data.get("fill_color") or 0, range(256), f"{where}: fill_color")
    # for a tower that is not square open_clip has another resize, which rounds and is always bicubic
    wide = mode == "shortest" and image_size[0] != image_size[1]
    return Preprocessing(
        size=image_size,
        mode={"shortest": "shortest_crop", "longest": "pad", "squash": "squash"}[mode],  # type: ignore[arg-type]
        # "random" is a training setting
        resample="bilinear" if resample == "bilinear" and not wide else "bicubic",
        mean=common.triple(data.get("mean") or common.OPENAI_MEAN, f"{where}: mean"),
        std=common.stds(data.get("std") or common.OPENAI_STD, f"{where}: std"),
        resize=image_size[0] if mode == "shortest" and not wide else 0,
        long_side="round" if mode == "longest" or wide else "floor",
        crop_offset="round_half_even",
        pad_color=(fill_color, fill_color, fill_color),
    )
