"""Hugging Face `CLIPModel` folders: config.json, model.safetensors (or shards), preprocessor and tokenizer files.

Facts of the format follow transformers' CLIP (config defaults, names of tensors, the meaning of eos_token_id 2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.errors import SourceError
from edgeclip.models.clip import Clip
from edgeclip.models.config import Activation, ClipConfig, ImageConfig, TextConfig, TransformerConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import Rule, fill, find_weights, read_json, read_weights
from edgeclip.models.loaders.huggingface_files import folder_tokenizer, read_preprocessing, read_text
from edgeclip.models.loaders.tokenizer import read_tokenizer
from edgeclip.models.source import Request, Source

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin",)
SHARDS = ("model-*-of-*.safetensors",)

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
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


def matches(folder: Path) -> bool:
    """Whether the folder holds a Hugging Face model of any type (`load` says which types it can read)."""
    config = folder / "config.json"
    return config.is_file() and "model_type" in read_json(config)


def load(folder: Path, name: str, request: Request) -> Source:
    """Load a `CLIPModel` folder.

    Raises:
        SourceError: another model type, a missing or damaged file, or config and weights that contradict each other.
    """
    config = read_config(folder / "config.json")
    weights = read_weights(find_weights(folder, WEIGHTS, PICKLES), allow_pickle=request.allow_pickle)
    model = fill(lambda: Clip(config), weights, _rules(config), lambda key: key.endswith("position_ids"))
    common.check_scale(model, weights.where)
    tokenizer_json = read_tokenizer(request.tokenizer) if request.tokenizer else folder_tokenizer(folder)
    return Source(
        spec=request.spec,
        name=name,
        family="clip",
        model=model,
        embedding_dim=config.embed_dim,
        activation="softmax",
        preprocessing=read_preprocessing(folder, config.image.image_size),
        text=read_text(folder, config.text, tokenizer_json),
        tokenizer_json=tokenizer_json,
        pooling=f"{config.image.pool}/{config.text.pool}",
        licence=common.read_licence(folder),
        digest=weights.digest,
        templates=common.PHOTO_TEMPLATES,
    )


def read_config(path: Path) -> ClipConfig:
    """A `CLIPModel`'s config.json as ours. Raises SourceError on another model type or an impossible value."""
    data = read_json(path)
    if data.get("model_type") != "clip":
        raise SourceError(
            f"{path}: model_type is {data.get('model_type')!r}; of Hugging Face models edgeclip reads 'clip'."
        )
    shared = common.overlay(
        {"projection_dim": 512}, {"projection_dim": data.get("projection_dim")}, str(path)
    )
    image, text = _section(data, "vision_config", _IMAGE, path), _section(data, "text_config", _TEXT, path)
    sides = common.pair(image["patch_size"], f"{path}: patch_size")
    if sides[0] != sides[1] or image["num_channels"] != 3:
        raise SourceError(
            f"{path}: expected square patches of 3 channels, got {sides} of {image['num_channels']}."
        )
    eos = text["eos_token_id"]
    if type(eos) is not int:
        raise SourceError(f"{path}: expected one eos_token_id, got {eos!r}.")
    return ClipConfig(
        embed_dim=shared["projection_dim"],
        image=ImageConfig(
            blocks=_blocks(image, f"{path}: vision_config"),
            image_size=common.pair(image["image_size"], f"{path}: image_size"),
            patch_size=sides[0],
        ),
        text=TextConfig(
            blocks=_blocks(text, f"{path}: text_config"),
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            # configs written before the id was corrected carry 2, which transformers reads as "largest id"
            pool="argmax" if eos == 2 else "eos",
            eos_id=eos,
        ),
    )


def _section(data: dict[str, Any], name: str, defaults: dict[str, Any], path: Path) -> dict[str, Any]:
    # old configs repeat a section as NAME_dict; where present it wins, its defaults included
    own, older = data.get(name) or {}, data.get(f"{name}_dict")
    if not isinstance(own, dict) or not isinstance(older, dict | None):
        raise SourceError(f"{path}: {name} is no object. The file is damaged: fetch it again.")
    return common.overlay(defaults, own if older is None else {**own, **defaults, **older}, f"{path}: {name}")


def _blocks(data: dict[str, Any], where: str) -> TransformerConfig:
    activation = ACTIVATIONS.get(data["hidden_act"])
    if activation is None:
        raise SourceError(
            f"{where}: hidden_act is {data['hidden_act']!r}, expected one of {', '.join(ACTIVATIONS)}."
        )
    common.check_heads(data["hidden_size"], data["num_attention_heads"], where)
    return TransformerConfig(
        width=data["hidden_size"],
        layers=data["num_hidden_layers"],
        heads=data["num_attention_heads"],
        mlp_width=data["intermediate_size"],
        activation=activation,
        norm_eps=data["layer_norm_eps"],
    )


def _rules(config: ClipConfig) -> dict[str, Rule]:
    rules = {
        "logit_scale": Rule(("logit_scale",)),
        "image.class_token": Rule(("vision_model.embeddings.class_embedding",)),
        "image.patches.weight": Rule(("vision_model.embeddings.patch_embedding.weight",)),
        "image.position": Rule(("vision_model.embeddings.position_embedding.weight",)),
        "image.projection.weight": Rule(("visual_projection.weight",)),
        "text.embedding.weight": Rule(("text_model.embeddings.token_embedding.weight",)),
        "text.position": Rule(("text_model.embeddings.position_embedding.weight",)),
        "text.projection.weight": Rule(("text_projection.weight",)),
    }
    pairs = {
        "image.norm_pre": "vision_model.pre_layrnorm",  # the name's spelling is the format's
        "image.norm_post": "vision_model.post_layernorm",
        "text.norm_final": "text_model.final_layer_norm",
    }
    for ours, theirs, layers in (
        ("image", "vision_model", config.image.blocks.layers),
        ("text", "text_model", config.text.blocks.layers),
    ):
        for i in range(layers):
            block, layer = f"{ours}.blocks.{i}", f"{theirs}.encoder.layers.{i}"
            pairs |= {
                f"{block}.norm1": f"{layer}.layer_norm1",
                f"{block}.norm2": f"{layer}.layer_norm2",
                f"{block}.attention.out": f"{layer}.self_attn.out_proj",
                f"{block}.mlp.fc1": f"{layer}.mlp.fc1",
                f"{block}.mlp.fc2": f"{layer}.mlp.fc2",
            }
            for kind in ("weight", "bias"):
                rules[f"{block}.attention.qkv.{kind}"] = Rule(
                    tuple(f"{layer}.self_attn.{part}_proj.{kind}" for part in "qkv")
                )
    for mine, other in pairs.items():
        rules |= {f"{mine}.{kind}": Rule((f"{other}.{kind}",)) for kind in ("weight", "bias")}
    return rules
