"""`CLIPModel` of transformers: OpenAI's CLIP, LAION's, MetaCLIP 1, TinyCLIP.

Facts of the format follow transformers' CLIP (config defaults, names of tensors, the meaning of eos_token_id 2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.bundle.manifest import TextSettings
from edgeclip.errors import SourceError
from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import Rule, paired
from edgeclip.models.loaders.huggingface.blocks import blocks, layer_rules, projection_dim, section
from edgeclip.models.loaders.huggingface.files import folder_tokenizer, text_settings
from edgeclip.models.loaders.tokenizer import read_tokenizer
from edgeclip.models.source import Request

FAMILY = "clip"
# What transformers takes for a key that the config leaves out.
_BLOCKS: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
_IMAGE: dict[str, Any] = {
    **_BLOCKS,
    **{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    **{"num_channels": 3, "image_size": 224, "patch_size": 32},
}
_TEXT: dict[str, Any] = {
    **_BLOCKS,
    **{"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
    **{"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
}


def read_config(data: dict[str, Any], path: Path) -> ClipConfig:
    """A `CLIPModel`'s config.json as ours. Raises SourceError on an impossible value."""
    return ClipConfig(
        embed_dim=projection_dim(data, path), image=read_image(data, path), text=read_text_config(data, path)
    )


def read_image(data: dict[str, Any], path: Path, **defaults: Any) -> ImageConfig:
    """CLIP's vision_config as ours; `defaults` of a relative. Raises SourceError on an impossible value."""
    image = section(data, "vision_config", {**_IMAGE, **defaults}, path)
    sides = common.pair(image["patch_size"], f"{path}: patch_size")
    if sides[0] != sides[1] or image["num_channels"] != 3:
        raise SourceError(
            f"{path}: expected square patches of 3 channels, got {sides} of {image['num_channels']}."
        )
    return ImageConfig(
        blocks=blocks(image, f"{path}: vision_config"),
        image_size=common.pair(image["image_size"], f"{path}: image_size"),
        patch_size=sides[0],
    )


def read_text_config(data: dict[str, Any], path: Path, **defaults: Any) -> TextConfig:
    """CLIP's text_config as ours; `defaults` of a relative. Raises SourceError on an impossible value."""
    text = section(data, "text_config", {**_TEXT, **defaults}, path)
    eos = text["eos_token_id"]
    if type(eos) is not int:
        raise SourceError(f"{path}: expected one eos_token_id, got {eos!r}.")
    return TextConfig(
        blocks=blocks(text, f"{path}: text_config"),
        vocab_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        # configs written before the id was corrected carry 2, which transformers reads as "largest id"
        pool="argmax" if eos == 2 else "eos",
        eos_id=eos,
    )


def rules(config: ClipConfig) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    assert isinstance(config.image, ImageConfig)
    assert isinstance(config.text, TextConfig)
    return {
        **image_rules(config.image),
        **text_rules(config.text),
        "logit_scale": Rule(("logit_scale",)),
    }


def image_rules(config: ImageConfig) -> dict[str, Rule]:
    """Where each tensor of the image tower comes from."""
    return {
        "image.class_token": Rule(("vision_model.embeddings.class_embedding",)),
        "image.patches.weight": Rule(("vision_model.embeddings.patch_embedding.weight",)),
        "image.position": Rule(("vision_model.embeddings.position_embedding.weight",)),
        "image.projection.weight": Rule(("visual_projection.weight",)),
        **paired(
            {
                "image.norm_pre": "vision_model.pre_layrnorm",  # the name's spelling is the format's
                "image.norm_post": "vision_model.post_layernorm",
            }
        ),
        **layer_rules("image", "vision_model", config.blocks.layers),
    }


def text_rules(config: TextConfig) -> dict[str, Rule]:
    """Where each tensor of the text tower comes from."""
    return {
        "text.embedding.weight": Rule(("text_model.embeddings.token_embedding.weight",)),
        "text.position": Rule(("text_model.embeddings.position_embedding.weight",)),
        "text.projection.weight": Rule(("text_projection.weight",)),
        **paired({"text.norm_final": "text_model.final_layer_norm"}),
        **layer_rules("text", "text_model", config.blocks.layers),
    }


def ignorable(name: str) -> bool:
    """Whether a tensor of the checkpoint is no weight."""
    return name.endswith("position_ids")


def read_text(folder: Path, config: TextConfig, request: Request) -> tuple[bytes, TextSettings]:
    """-> (tokenizer.json, how texts become ids). Raises SourceError for a tokenizer of another model."""
    tokenizer_json = read_tokenizer(request.tokenizer) if request.tokenizer else folder_tokenizer(folder)
    return tokenizer_json, text_settings(folder, config, tokenizer_json)
