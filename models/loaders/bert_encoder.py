"""BERT's relatives as transformers writes them: sections of config.json, names of tensors. Hugging Face and OpenCLIP share it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.bundle.manifest import TextSettings
from edgeclip.errors import SourceError
from edgeclip.models.loaders.checkpoint import Rule, paired
from edgeclip.models.loaders.huggingface.blocks import blocks
from edgeclip.models.loaders.huggingface.files import folder_tokenizer, text_settings
from edgeclip.models.loaders.tokenizer import read_tokenizer
from edgeclip.models.source import Request
from edgeclip.models.text_encoder import EncoderConfig

# What transformers takes for a key that the section leaves out.
BERT: dict[str, Any] = {
    **{"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2},
    **{"layer_norm_eps": 1e-12, "pad_token_id": 0},
}
ROBERTA: dict[str, Any] = {**BERT, "vocab_size": 50265, "pad_token_id": 1}
XLM_ROBERTA: dict[str, Any] = {**BERT, "pad_token_id": 1}
# Keys that describe another model unless they hold this.
_OFF: dict[str, Any] = {
    **{
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "pruned_heads": {},
    },
    **{"use_relative_position": False, "embedding_size": None},
}


def encoder_config(data: dict[str, Any], where: str, **ours: Any) -> EncoderConfig:
    """A section, laid over its defaults, as ours.

    Args:
        ours: what the section does not say: `counted`, `pool`, `projection` ...
    Raises:
        SourceError: an unknown activation, heads that do not fit, or a key that describes another model.
    """
    for key, value in _OFF.items():
        if data.get(key) not in (None, value):
            raise SourceError(
                f"{where}.{key} = {data[key]!r} describes a model that edgeclip cannot load yet."
            )
    pad = data["pad_token_id"]
    if not 0 <= pad < data["vocab_size"]:
        raise SourceError(f"{where}: pad_token_id is {pad}, the vocabulary has {data['vocab_size']} tokens.")
    found = EncoderConfig(
        blocks=blocks(data, where),
        vocab_size=data["vocab_size"],
        positions=data["max_position_embeddings"],
        pad_id=pad,
        token_types=data["type_vocab_size"],
        **ours,
    )
    if found.context_length < 1:
        raise SourceError(
            f"{where}: {found.positions} positions, of which padding takes {pad + 1}, leave none for texts."
        )
    return found


def encoder_rules(config: EncoderConfig, theirs: str) -> dict[str, Rule]:
    """Where the tower's tensors come from, but for its projection. `theirs`: the model's prefix, e.g. "text_model"."""
    found: dict[str, Rule] = paired({"text.norm_embedding": f"{theirs}.embeddings.LayerNorm"})
    for ours, name in (("embedding", "word"), ("position", "position"), ("token_type", "token_type")):
        found[f"text.{ours}.weight"] = Rule((f"{theirs}.embeddings.{name}_embeddings.weight",))
    if config.pool == "pooler":
        found |= paired({"text.pooler": f"{theirs}.pooler.dense"})
    for i in range(config.blocks.layers):
        block, layer = f"text.blocks.{i}", f"{theirs}.encoder.layer.{i}"
        found |= paired(
            {
                f"{block}.attention.out": f"{layer}.attention.output.dense",
                f"{block}.norm1": f"{layer}.attention.output.LayerNorm",
                f"{block}.mlp.fc1": f"{layer}.intermediate.dense",
                f"{block}.mlp.fc2": f"{layer}.output.dense",
                f"{block}.norm2": f"{layer}.output.LayerNorm",
            }
        )
        for kind in ("weight", "bias"):
            names = tuple(f"{layer}.attention.self.{part}.{kind}" for part in ("query", "key", "value"))
            found[f"{block}.attention.qkv.{kind}"] = Rule(names)
    return found


def read_text(folder: Path, config: EncoderConfig, request: Request) -> tuple[bytes, TextSettings]:
    """-> (tokenizer.json, how texts become ids). Raises SourceError for a tokenizer of another model."""
    tokenizer_json = read_tokenizer(request.tokenizer) if request.tokenizer else folder_tokenizer(folder)
    settings = text_settings(folder, config, tokenizer_json)
    check_padding(config, settings, str(folder))
    return tokenizer_json, settings


def check_padding(config: Any, settings: TextSettings, where: str) -> None:
    """Raise SourceError unless texts are padded with the id that the tower hides."""
    if settings.pad_id != config.pad_id:
        raise SourceError(
            f"{where}: the text tower takes id {config.pad_id} for padding, its tokenizer pads with {settings.pad_id}. "
            "This tokenizer belongs to another model, or correct pad_token_id in the config."
        )
