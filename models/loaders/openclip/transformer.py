"""OpenCLIP's own text transformer."""

from __future__ import annotations

from typing import Any

from edgeclip.models.config import TextConfig
from edgeclip.models.loaders.checkpoint import Rule, Weights, paired
from edgeclip.models.loaders.openclip import blocks
from edgeclip.models.loaders.openclip.config import Shared, one_of

KEYS: dict[str, Any] = {
    **blocks.KEYS,
    "width": 512,
    "heads": 8,
    "context_length": 77,
    "vocab_size": 49408,
    "pool_type": "argmax",
    "pad_id": 0,
    "eos_id": 2,
    "no_causal_mask": False,
    "embed_cls": False,
    "proj_type": "linear",
    "proj_bias": False,
    "final_ln_after_pool": False,
    "output_tokens": False,
    "hf_tokenizer_name": "",
    "tokenizer_kwargs": {},
}

_POOLS = ("argmax", "eos", "last", "first")


def matches(own: Any) -> bool:
    """What no other tower claims is this one, or is refused by its keys."""
    return True


def read(text: dict[str, Any], shared: Shared) -> TextConfig:
    """A `text_cfg` as ours. Raises SourceError on a setting that edgeclip does not know."""
    where = shared.where
    projection = one_of(text["proj_type"], ("linear", "none"), f"{where}.proj_type") == "linear"
    return TextConfig(
        blocks=blocks.blocks(text, text["heads"], shared),
        vocab_size=text["vocab_size"],
        context_length=text["context_length"],
        # a class token is what stands for the text, whatever else the section says
        pool="class" if text["embed_cls"] else one_of(text["pool_type"], _POOLS, f"{where}.pool_type"),
        eos_id=text["eos_id"],
        pad_id=text["pad_id"],
        causal=not text["no_causal_mask"],
        projection=projection,
        projection_bias=bool(text["proj_bias"]) and projection,
    )


def rules(config: TextConfig, weights: Weights) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    found = {
        "text.embedding.weight": Rule(("text.token_embedding.weight",)),
        "text.position": Rule(("text.positional_embedding",)),
        "text.projection.weight": Rule(("text.text_projection",), transpose=True),
        **paired({"text.norm_final": "text.ln_final"}),
        **blocks.layer_rules("text", "text", config.blocks.layers, weights),
    }
    if config.pool == "class":
        found["text.class_token"] = Rule(("text.cls_emb",))
    if config.projection_bias:
        found |= paired({"text.projection": "text.text_projection"})
    return found
