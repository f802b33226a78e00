"""`SiglipModel` of transformers: SigLIP, and SigLIP 2 at a fixed resolution, whose configs are of the same type.

Facts of the format follow transformers' SigLIP (config defaults, names of tensors, its tokenizers and where they differ from
how the weights were trained).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgeclip.bundle.manifest import TextSettings
from edgeclip.errors import SourceError
from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import Rule, paired
from edgeclip.models.loaders.huggingface.blocks import blocks, layer_rules, section
from edgeclip.models.loaders.huggingface.files import stated_tokenizer, text_settings
from edgeclip.models.loaders.sentencepiece import gemma_json, gemma_tokenizer, siglip_tokenizer
from edgeclip.models.loaders.tokenizer import read_tokenizer
from edgeclip.models.source import Request

FAMILY = "siglip"
PROCESSOR = "SiglipImageProcessor"
# What transformers takes for a key that the config leaves out.
_BLOCKS: dict[str, Any] = {
    **{"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_hidden_layers": 12},
    **{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}
_IMAGE = {**_BLOCKS, "num_channels": 3, "image_size": 224, "patch_size": 16, "vision_use_head": True}
_TEXT = {**_BLOCKS, "vocab_size": 32000, "max_position_embeddings": 64, "projection_size": None}
# tokenizer_class without "Fast" -> special tokens where the folder states none
_SIGLIP = {"eos": "</s>", "unk": "<unk>", "pad": "</s>"}
_GEMMA = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}
_TOKENIZERS = {"SiglipTokenizer": _SIGLIP, "GemmaTokenizer": _GEMMA, "Siglip2Tokenizer": _GEMMA}


def read_config(data: dict[str, Any], path: Path) -> ClipConfig:
    """A `SiglipModel`'s config.json as ours. Raises SourceError on an impossible value, or one of another model."""
    image, (text, width) = read_image(data, path), read_text_config(data, path)
    if width != image.blocks.width:
        raise SourceError(
            f"{path}: texts become {width} numbers (text_config.projection_size), pictures {image.blocks.width} "
            "(vision_config.hidden_size); no score can be made of them. The file is damaged: fetch it again."
        )
    return ClipConfig(width, image, text, logit_bias=True)


def read_image(data: dict[str, Any], path: Path) -> ImageConfig:
    """The image tower of a config.json. Raises SourceError on an impossible value, or one of another model."""
    image = section(data, "vision_config", _IMAGE, path)
    patch, size = (common.pair(image[key], f"{path}: {key}") for key in ("patch_size", "image_size"))
    if patch[0] != patch[1] or size[0] != size[1] or image["num_channels"] != 3:
        raise SourceError(
            f"{path}: expected square patches of square pictures of 3 channels, got {patch} of {size}, "
            f"{image['num_channels']} channels."
        )
    if "num_patches" in image:
        raise SourceError(
            f"{path}: vision_config.num_patches describes pictures of free size, which edgeclip cannot load. Take a "
            "checkpoint of one resolution."
        )
    if not image["vision_use_head"]:
        raise SourceError(
            f"{path}: vision_use_head is false: this model gives tokens and no embedding. Take the whole model."
        )
    return ImageConfig(
        blocks=blocks(image, f"{path}: vision_config"),
        image_size=size,
        patch_size=patch[0],
        pool="map",
        class_token=False,
        patch_bias=True,
        norm_pre=False,
        norm_after_pool=False,
        projection=False,
    )


def read_text_config(data: dict[str, Any], path: Path) -> tuple[TextConfig, int]:
    """-> (the text tower of a config.json, its embedding width). Raises SourceError on an impossible value."""
    text = section(data, "text_config", _TEXT, path)
    config = TextConfig(
        blocks=blocks(text, f"{path}: text_config"),
        vocab_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        pool="last",
        causal=False,
        projection_bias=True,
    )
    return config, text["projection_size"] or text["hidden_size"]


def rules(config: ClipConfig) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    assert isinstance(config.image, ImageConfig)
    assert isinstance(config.text, TextConfig)
    scores = {name: Rule((name,)) for name in ("logit_scale", "logit_bias")}
    return {**scores, **image_rules(config.image), **text_rules(config.text)}


def image_rules(config: ImageConfig) -> dict[str, Rule]:
    """Where the image tower comes from. The pool's query, key and value are packed: the query is the first third."""
    width, head = config.blocks.width, "vision_model.head"
    packed = {
        f"image.head.{ours}.{kind}": Rule((f"{head}.attention.in_proj_{kind}",), rows=rows)
        for ours, rows in (("q", slice(width)), ("kv", slice(width, None)))
        for kind in ("weight", "bias")
    }
    return {
        "image.position": Rule(("vision_model.embeddings.position_embedding.weight",)),
        "image.head.probe": Rule((f"{head}.probe",)),
        **packed,
        **paired(
            {
                "image.patches": "vision_model.embeddings.patch_embedding",
                "image.norm_post": "vision_model.post_layernorm",
                "image.head.out": f"{head}.attention.out_proj",
                "image.head.norm": f"{head}.layernorm",
                "image.head.mlp.fc1": f"{head}.mlp.fc1",
                "image.head.mlp.fc2": f"{head}.mlp.fc2",
            }
        ),
        **layer_rules("image", "vision_model", config.blocks.layers),
    }


def text_rules(config: TextConfig) -> dict[str, Rule]:
    """Where the text tower comes from."""
    return {
        "text.embedding.weight": Rule(("text_model.embeddings.token_embedding.weight",)),
        "text.position": Rule(("text_model.embeddings.position_embedding.weight",)),
        **paired({"text.norm_final": "text_model.final_layer_norm", "text.projection": "text_model.head"}),
        **layer_rules("text", "text_model", config.blocks.layers),
    }


def ignorable(name: str) -> bool:
    """Whether a tensor of the checkpoint is no weight."""
    return name.endswith("position_ids")


def read_text(folder: Path, config: TextConfig, request: Request) -> tuple[bytes, TextSettings]:
    """-> (tokenizer.json, how texts become ids). Raises SourceError for a tokenizer of another model.

    SigLIP: canonical form by the cleaning "siglip", SentencePiece from spiece.model, which is what its own tokenizer reads and
    a tokenizer.json beside it only comes near to. SigLIP 2: lower case, though transformers' GemmaTokenizer does not do it.
    """
    stated = stated_tokenizer(folder)
    named = stated.get("tokenizer_class") or "SiglipTokenizer"  # as transformers takes it for this model type
    kind = str(named).removesuffix("Fast")
    if kind not in _TOKENIZERS:
        raise SourceError(
            f"{folder}: tokenizer_class is {named!r}, expected one of {', '.join(_TOKENIZERS)}. It belongs to another model."
        )
    if stated.get("do_lower_case", True) is not True:
        raise SourceError(
            f"{folder}: do_lower_case is {stated['do_lower_case']!r}, but SigLIP was trained on texts in lower case."
        )
    tokens = {name: stated.get(f"{name}_token") or token for name, token in _TOKENIZERS[kind].items()}
    clean, (made, path) = (
        ("siglip", _siglip(folder, config, request, tokens))
        if kind == "SiglipTokenizer"
        else ("none", _gemma(folder, request, tokens, stated.get("add_eos_token") is True))
    )
    tokenizer = Tokenizer.from_str(made.decode())
    marks, wanted = tokenizer.encode("").ids, tokenizer.token_to_id(tokens["eos"])
    if stated.get("add_bos_token") or marks != [wanted]:
        raise SourceError(
            f"{path}: expected texts that end with {tokens['eos']!r} ({wanted}) and have nothing before them, as SigLIP was "
            f"trained; the marks of this one are {marks}. It belongs to another model."
        )
    return made, text_settings(folder, config, made, pads=(tokens["pad"],), clean=clean)


def _siglip(folder: Path, config: TextConfig, request: Request, tokens: dict[str, str]) -> tuple[bytes, Path]:
    path = _vocabulary(folder, request, ("spiece.model", "tokenizer.json"))
    if path.suffix == ".model":
        return siglip_tokenizer(path, config.vocab_size, **tokens), path
    made = read_tokenizer(path)
    if json.loads(made)["model"]["type"] != "Unigram":
        raise SourceError(
            f"{path}: expected a unigram tokenizer, as SigLIP has it. It belongs to another model."
        )
    return made, path


def _gemma(folder: Path, request: Request, tokens: dict[str, str], add_eos: bool) -> tuple[bytes, Path]:
    path = _vocabulary(folder, request, ("tokenizer.json", "tokenizer.model"))
    if path.suffix == ".model":
        return gemma_tokenizer(path, **tokens), path
    return gemma_json(path, eos=tokens["eos"], add_eos=add_eos), path


def _vocabulary(folder: Path, request: Request, names: tuple[str, ...]) -> Path:
    path = request.tokenizer or next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise SourceError(f"{folder}: expected {' or '.join(names)}. Pass one with --tokenizer FILE.")
    return path
