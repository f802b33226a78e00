"""`VisionTextDualEncoderModel` of transformers: any two encoders by name; read here with CLIP's or ViT's vision transformer and
BERT, RoBERTa or XLM-R. clip-italian is one of these.

Facts of the format follow transformers: both towers are pooled as each library model itself does it (`pooler_output`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.errors import SourceError
from edgeclip.models.config import ClipConfig, ImageConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.bert_encoder import (
    BERT,
    ROBERTA,
    XLM_ROBERTA,
    encoder_config,
    encoder_rules,
    read_text,
)
from edgeclip.models.loaders.checkpoint import Rule, paired
from edgeclip.models.loaders.huggingface import clip
from edgeclip.models.loaders.huggingface.blocks import blocks, projection_dim, section
from edgeclip.models.pooled_vit import PooledVitConfig
from edgeclip.models.text_encoder import EncoderConfig

__all__ = ["FAMILY", "RENAMED", "ignorable", "read_config", "read_text", "rules"]

FAMILY = "vision-text-dual-encoder"
RENAMED = {r"^vision_model\.vision_model\.": "vision_model."}  # before transformers 5
IMAGES = ("clip_vision_model", "vit")
TEXTS = {"bert": BERT, "roberta": ROBERTA, "xlm-roberta": XLM_ROBERTA}
_VIT: dict[str, Any] = {
    **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    **{"hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3},
    **{"qkv_bias": True, "pooler_act": "tanh", "pooler_output_size": 0},
}


def read_config(data: dict[str, Any], path: Path) -> ClipConfig:
    """A `VisionTextDualEncoderModel`'s config.json as ours. Raises SourceError on another tower or an impossible value."""
    image = _model_type(data, "vision_config", IMAGES, path)
    text = _model_type(data, "text_config", tuple(TEXTS), path)
    return ClipConfig(
        projection_dim(data, path),
        clip.read_image(data, path) if image == "clip_vision_model" else _read_vit(data, path),
        encoder_config(
            section(data, "text_config", TEXTS[text], path),
            f"{path}: text_config",
            counted=text != "bert",
            pool="pooler",
        ),
    )


def _model_type(data: dict[str, Any], name: str, known: tuple[str, ...], path: Path) -> str:
    found = section(data, name, {}, path).get("model_type")
    if found not in known:
        raise SourceError(f"{path}: {name}.model_type is {found!r}, expected one of {', '.join(known)}.")
    return str(found)


def _read_vit(data: dict[str, Any], path: Path) -> PooledVitConfig:
    where = f"{path}: vision_config"
    image = section(data, "vision_config", _VIT, path)
    for key, value in (("num_channels", 3), ("qkv_bias", True), ("pooler_act", "tanh")):
        if image[key] != value:
            raise SourceError(f"{where}.{key} is {image[key]!r}, expected {value!r}.")
    if image["pooler_output_size"] not in (0, image["hidden_size"]):
        raise SourceError(
            f"{where}.pooler_output_size is {image['pooler_output_size']}, expected hidden_size."
        )
    sides = common.pair(image["patch_size"], f"{where}: patch_size")
    if sides[0] != sides[1]:
        raise SourceError(f"{where}: expected square patches, got {sides}.")
    return PooledVitConfig(
        blocks=blocks(image, where),
        image_size=common.pair(image["image_size"], f"{where}: image_size"),
        patch_size=sides[0],
        patch_bias=True,
        norm_pre=False,
    )


def rules(config: ClipConfig) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    assert isinstance(config.image, ImageConfig)
    assert isinstance(config.text, EncoderConfig)
    vit = isinstance(config.image, PooledVitConfig)
    return {
        "logit_scale": Rule(("logit_scale",)),
        "text.projection.weight": Rule(("text_projection.weight",)),
        **(_vit_rules(config.image.blocks.layers) if vit else clip.image_rules(config.image)),
        **encoder_rules(config.text, "text_model"),
    }


def _vit_rules(layers: int) -> dict[str, Rule]:
    theirs = "vision_model"
    found = {
        "image.class_token": Rule((f"{theirs}.embeddings.cls_token",)),
        "image.position": Rule((f"{theirs}.embeddings.position_embeddings",)),
        "image.projection.weight": Rule(("visual_projection.weight",)),
        **paired(
            {
                "image.patches": f"{theirs}.embeddings.patch_embeddings.projection",
                "image.norm_post": f"{theirs}.layernorm",
                "image.pooler": f"{theirs}.pooler.dense",
            }
        ),
    }
    for i in range(layers):
        block, layer = f"image.blocks.{i}", f"{theirs}.encoder.layer.{i}"
        found |= paired(
            {
                f"{block}.norm1": f"{layer}.layernorm_before",
                f"{block}.norm2": f"{layer}.layernorm_after",
                f"{block}.attention.out": f"{layer}.attention.output.dense",
                f"{block}.mlp.fc1": f"{layer}.intermediate.dense",
                f"{block}.mlp.fc2": f"{layer}.output.dense",
            }
        )
        for kind in ("weight", "bias"):
            names = tuple(f"{layer}.attention.attention.{part}.{kind}" for part in ("query", "key", "value"))
            found[f"{block}.attention.qkv.{kind}"] = Rule(names)
    return found


def ignorable(name: str) -> bool:
    """Whether a tensor of the checkpoint is no weight."""
    return clip.ignorable(name)
