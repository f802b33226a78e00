"""OpenCLIP's configs, read whole: a key that describes a model outside the ViT family is refused, never passed over.

Facts of the format follow open_clip (keys, defaults, poolings, preprocessing).
"""

from __future__ import annotations

import logging
from typing import Any

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.errors import SourceError
from edgeclip.models.config import (
    Activation,
    ClipConfig,
    ImageConfig,
    ImagePool,
    TextConfig,
    TransformerConfig,
)
from edgeclip.models.loaders import common

log = logging.getLogger(__name__)

# Every key that a section may hold, with open_clip's default.
_BLOCKS: dict[str, Any] = {
    "layers": 12,
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "act_kwargs": {},
    "norm_kwargs": {},
}
_IMAGE: dict[str, Any] = {
    **_BLOCKS,
    **{
        "width": 768,
        "head_width": 64,
        "patch_size": 16,
        "image_size": 224,
        "pool_type": "tok",
        "no_ln_pre": False,
    },
    **{
        "attentional_pool": False,
        "attn_pooler_queries": 256,
        "attn_pooler_heads": 8,
        "final_ln_after_pool": False,
    },
    **{"pos_embed_type": "learnable", "patch_dropout": 0.0, "output_tokens": False},
}
_TEXT: dict[str, Any] = {
    **_BLOCKS,
    **{
        "width": 512,
        "heads": 8,
        "context_length": 77,
        "vocab_size": 49408,
        "pool_type": "argmax",
        "pad_id": 0,
    },
    **{
        "eos_id": 2,
        "no_causal_mask": False,
        "proj_type": "linear",
        "proj_bias": False,
        "final_ln_after_pool": False,
    },
    **{"output_tokens": False, "tokenizer_kwargs": {}},
}
# Keys that describe a model which this loader does not know, unless they hold this.
_FIXED: dict[str, Any] = {
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn"), False
    ),
    **dict.fromkeys(("scale_fc", "embed_cls"), False),
    **dict.fromkeys(
        ("block_type", "timm_model_name", "hf_model_name", "hf_tokenizer_name", "tokenizer_mode"), None
    ),
}
_TOP: dict[str, Any] = {
    "embed_dim": 0,
    "vision_cfg": {},
    "text_cfg": {},
    "quick_gelu": False,
    "custom_text": False,
}
_TOP |= {
    "init_logit_scale": None,
    "init_logit_bias": None,
    "nonscalar_logit_scale": False,
    "output_dict": False,
}


def read_config(own: Any, where: str, *, logit_bias: bool) -> ClipConfig:
    """A `model_cfg` as ours. Raises SourceError on a key or value that describes a model outside the ViT family."""
    top = _section(own, _TOP, where)
    if not (top["embed_dim"] and own.keys() >= {"vision_cfg", "text_cfg"}):
        raise SourceError(
            f"{where}: expected embed_dim, vision_cfg and text_cfg. This is not an OpenCLIP config."
        )
    image = _section(top["vision_cfg"], _IMAGE, f"{where}: vision_cfg")
    text = _section(top["text_cfg"], _TEXT, f"{where}: text_cfg")
    quick, embed_dim = top["quick_gelu"], top["embed_dim"]
    pool, after = _image_pool(image, where)
    sides = common.pair(image["patch_size"], f"{where}: patch_size")
    if sides[0] != sides[1]:
        raise SourceError(f"{where}: expected square patches, got {sides}.")
    pooler = pool.startswith("attentional")
    return ClipConfig(
        embed_dim=embed_dim,
        logit_bias=logit_bias,
        image=ImageConfig(
            blocks=_blocks(image, image["width"] // image["head_width"], quick, f"{where}: vision_cfg"),
            image_size=common.pair(image["image_size"], f"{where}: image_size"),
            patch_size=sides[0],
            pool=pool,
            norm_pre=not image["no_ln_pre"],
            norm_after_pool=after,
            pool_queries=image["attn_pooler_queries"] if pooler else 0,
            pool_heads=image["attn_pooler_heads"] if pooler else 0,
            pool_width=embed_dim if pooler else 0,
        ),
        text=TextConfig(
            blocks=_blocks(text, text["heads"], quick, f"{where}: text_cfg"),
            vocab_size=text["vocab_size"],
            context_length=text["context_length"],
            pool=_one_of(
                text["pool_type"], ("argmax", "eos", "last", "first"), f"{where}: text_cfg.pool_type"
            ),
            eos_id=text["eos_id"],
            causal=not text["no_causal_mask"],
            projection=_one_of(text["proj_type"], ("linear", "none"), f"{where}: text_cfg.proj_type")
            == "linear",
            projection_bias=bool(text["proj_bias"]) and text["proj_type"] == "linear",
        ),
    )


def _section(own: Any, defaults: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(own, dict):
        raise SourceError(f"{where}: expected an object, got {own!r}. The file is damaged: fetch it again.")
    for key, value in own.items():
        known = key in defaults or key.startswith(("timm_", "hf_"))
        if (not known and key not in _FIXED) or (key in _FIXED and value != _FIXED[key]):
            raise SourceError(f"{where}.{key} = {value!r} describes a model that edgeclip cannot load yet.")
    return common.overlay(defaults, {key: own[key] for key in own if key in defaults}, where)


def _one_of(value: Any, allowed: tuple[str, ...] | range, where: str) -> Any:
    if value not in allowed:
        expected = f"one of {', '.join(allowed)}" if isinstance(allowed, tuple) else "a number of 0-255"
        raise SourceError(f"{where} is {value!r}, expected {expected}.")
    return value


def _image_pool(image: dict[str, Any], where: str) -> tuple[ImagePool, bool]:
    """-> (pool, whether the norm comes after it)."""
    kind = _one_of(image["pool_type"], ("tok", "avg"), f"{where}: vision_cfg.pool_type")
    if image["attentional_pool"] is True:  # the pooler's queries are normalised before one is picked
        return ("attentional" if kind == "tok" else "attentional_avg"), True
    if image["attentional_pool"]:
        raise SourceError(f"{where}: attentional_pool {image['attentional_pool']!r}, expected true or false.")
    return ("cls" if kind == "tok" else "avg"), bool(image["final_ln_after_pool"])


def _blocks(data: dict[str, Any], heads: int, quick: bool, where: str) -> TransformerConfig:
    for name, known in (("act_kwargs", {"approximate"}), ("norm_kwargs", {"eps"})):
        if extra := sorted(set(data[name]) - known):
            raise SourceError(f"{where}.{name}: {extra[0]!r} is not a setting that edgeclip knows.")
    common.check_heads(data["width"], heads, where)
    tanh = data["act_kwargs"].get("approximate") == "tanh"
    activation: Activation = "quick_gelu" if quick else "gelu_tanh" if tanh else "gelu"
    return TransformerConfig(
        width=data["width"],
        layers=data["layers"],
        heads=heads,
        mlp_width=int(data["width"] * data["mlp_ratio"]),
        activation=activation,
        norm_eps=float(data["norm_kwargs"].get("eps", 1e-5)),
    )


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
    mode = _one_of(
        data.get("resize_mode") or "shortest", ("shortest", "longest", "squash"), f"{where}: resize_mode"
    )
    resample = _one_of(
        data.get("interpolation") or "bicubic", ("bicubic", "bilinear", "random"), f"{where}: interpolation"
    )
    fill_color = _one_of(data.get("fill_color") or 0, range(256), f"{where}: fill_color")
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
