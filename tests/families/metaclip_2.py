"""`MetaClip2Model` of transformers, with a SentencePiece vocabulary of XLM-R's kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.checkpoints import SIZES, hf_preprocessor, roughen
from tests.families import Size, Write, Written
from tests.families.transformers_models import features, prepare, tokenize
from tests.sentencepieces import write_xlm_roberta_tokenizer

# name -> size of both towers, image and text layers, activation
SHAPES = {
    "metaclip2-B/32": ("B/32", (12, 12), "gelu"),
    "metaclip2-H/14-quickgelu": ("H/14", (32, 24), "quick_gelu"),
}
_SIZES = {**SIZES, "H/14": (1280, 16, 14, 224, 1024, 16, 1024)}
_VOCAB_SIZE = 901629  # of XLM-V


def write_metaclip_2(
    folder: Path,
    size: str = "tiny",
    *,
    layers: tuple[int, int] = (2, 2),
    activation: str = "gelu",
    vocab_size: int = 0,
    legacy_tokenizer: bool = False,
) -> Any:
    """A MetaClip2Model folder with tokenizer and image processor. -> the model itself, in eval mode.

    Args:
        vocab_size: 0 = as many rows as the tokenizer has ids.
    """
    from transformers import MetaClip2Config, MetaClip2Model

    width, heads, patch, side, text_width, text_heads, embed = _SIZES[size]
    ids = write_xlm_roberta_tokenizer(folder, legacy=legacy_tokenizer)
    shared = {"hidden_act": activation, "projection_dim": embed}
    vision = {
        **{"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads},
        **{"num_hidden_layers": layers[0], "patch_size": patch, "image_size": side},
    }
    text = {
        **{"hidden_size": text_width, "intermediate_size": 4 * text_width, "num_attention_heads": text_heads},
        **{"num_hidden_layers": layers[1], "vocab_size": vocab_size or ids},
        **{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    }
    torch.manual_seed(0)
    model = MetaClip2Model(
        MetaClip2Config(
            vision_config={**shared, **vision}, text_config={**shared, **text}, projection_dim=embed
        )
    ).eval()
    roughen(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(hf_preprocessor(side)))
    return model


def _write(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        shape, layers, activation = SHAPES[name]
        model = write_metaclip_2(
            folder,
            "tiny" if size == "tiny" else shape,
            layers=layers if size == "full" else (2, 2),
            activation=activation,
            vocab_size=_VOCAB_SIZE if size == "full" else 0,
        )
        image, text = features(model)
        return Written(str(folder), image, text, tokenize(folder, 77), prepare(folder))

    return write


MODELS = {name: _write(name) for name in SHAPES}
