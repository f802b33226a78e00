"""open_clip's models whose text tower is one of Hugging Face: RoBERTa, XLM-R, BERT, and mT5's encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.checkpoints import SIZES, openclip_config, write_openclip
from tests.families import Size, Write, Written
from tests.families.openclip_models import of
from tests.vocabularies import (
    write_bert_tokenizer,
    write_json,
    write_roberta_tokenizer,
    write_t5_tokenizer,
    write_xlm_roberta_tokenizer,
)

# model -> (open_clip's architecture, name of the text model, writer of its tokenizer, rows of the vocabulary, changes of text_cfg)
Kind = tuple[str, str, Callable[..., int], int, dict[str, Any]]
KINDS: dict[str, Kind] = {
    "roberta-ViT-B-32": ("roberta-ViT-B-32", "roberta-base", write_roberta_tokenizer, 50265, {}),
    "xlm-roberta-base-ViT-B-32": (
        *("xlm-roberta-base-ViT-B-32", "xlm-roberta-base", write_xlm_roberta_tokenizer, 250002),
        {"hf_proj_type": "linear"},
    ),
    "xlm-roberta-large-ViT-H-14": (
        *("xlm-roberta-large-ViT-H-14", "xlm-roberta-large", write_xlm_roberta_tokenizer, 250002),
        {"hf_pooler_type": "cls_last_hidden_state_pooler"},
    ),
    "bert-ViT-B-32": (
        *("xlm-roberta-base-ViT-B-32", "bert-base-multilingual-cased", write_bert_tokenizer, 119547),
        {"hf_pooler_type": "cls_pooler"},
    ),
    "mt5-base-ViT-B-32": ("mt5-base-ViT-B-32", "google/mt5-base", write_t5_tokenizer, 250112, {}),
}


def text_config(name: str, rows: int, *, tiny: bool, layers: int | None) -> Any:
    """The config of a text model in transformers: published sizes but for the vocabulary, and for all at "tiny"."""
    from transformers import BertConfig, MT5Config, RobertaConfig, XLMRobertaConfig

    depth = layers or (24 if name.endswith(("large", "xl")) else 12)
    heads, width = (16, 1024) if name.endswith("large") else (12, 768)
    width = 48 if tiny else width
    if name == "google/mt5-base":
        return MT5Config(
            **{"vocab_size": rows, "d_model": width, "d_kv": 8 if tiny else 64, "d_ff": 64 if tiny else 2048},
            **{"num_layers": depth, "num_decoder_layers": 1, "num_heads": heads},
        )
    sizes = {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
    }
    if name.startswith("bert"):
        return BertConfig(**sizes, num_attention_heads=heads)
    family = RobertaConfig if name.startswith("roberta") else XLMRobertaConfig
    return family(
        **{**sizes, "num_attention_heads": heads, "max_position_embeddings": 514, "type_vocab_size": 1},
        layer_norm_eps=1e-5,
    )


def write_model(folder: Path, name: str, size: Size, *, embed_dim: int = 0, **changes: Any) -> Any:
    """A folder as open_clip writes it. -> the model, in eval mode. `embed_dim`: 0 = the size's own; `changes`: of text_cfg."""
    arch, text_name, tokenizer, full_rows, own = KINDS[name]
    tiny, full = size == "tiny", size == "full"
    rows = tokenizer(folder, room=full_rows if full else 0)
    config = openclip_config(arch, layers=None)
    config["custom_text"] = True
    if tiny:
        width, heads, patch, side, *_, config["embed_dim"] = SIZES["tiny"]
        config["vision_cfg"] = {
            "width": width,
            "head_width": width // heads,
            "patch_size": patch,
            "image_size": side,
        }
    config["embed_dim"] = embed_dim or config["embed_dim"]
    if not full:
        config["vision_cfg"]["layers"] = 1 if tiny else 2
    # open_clip builds the text model from a folder that describes it
    text_config(text_name, rows, tiny=tiny, layers=None if full else 2).save_pretrained(folder / "text")
    config["text_cfg"].update(
        {**own, **changes, "hf_model_name": str(folder / "text"), "hf_model_pretrained": False}
    )
    model = write_openclip(folder, config)
    path = folder / "open_clip_config.json"
    stated = json.loads(path.read_text())
    stated["model_cfg"]["text_cfg"] |= {"hf_model_name": text_name, "hf_model_pretrained": True}
    write_json(path, stated)
    return model


def _write(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        model = write_model(folder, name, size)
        return replace(of(folder, model, with_ids=size != "tiny"), text=model.encode_text)

    return write


MODELS = {name: _write(name) for name in KINDS}
