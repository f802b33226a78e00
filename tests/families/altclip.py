"""`AltCLIPModel` of transformers, at the sizes of BAAI/AltCLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.checkpoints import hf_preprocessor, roughen
from tests.families import Size, Written
from tests.families.transformers_models import masked_features, prepare, tokenize
from tests.sentencepieces import write_xlm_roberta_tokenizer
from tests.vocabularies import write_json

VOCABULARY = 250002


def write_altclip(
    folder: Path, *, tiny: bool = False, layers: int = 2, text_layers: int = 2, room: int = 0
) -> Any:
    """A folder with the model, its tokenizer and image processor. -> the model, in eval mode.

    Args:
        room: rows of the vocabulary, where it shall be larger than what the tests need.
    """
    from transformers import AltCLIPConfig, AltCLIPModel

    rows = max(write_xlm_roberta_tokenizer(folder, length=512), room)
    image, text, side = (64, 48, 32) if tiny else (1024, 1024, 224)
    torch.manual_seed(0)
    config = AltCLIPConfig(
        projection_dim=32 if tiny else 768,
        vision_config={
            **{
                "hidden_size": image,
                "intermediate_size": 4 * image,
                "num_attention_heads": image // 16 if tiny else 16,
            },
            **{"num_hidden_layers": layers, "patch_size": 16 if tiny else 14, "image_size": side},
        },
        text_config={
            **{"hidden_size": text, "intermediate_size": 4 * text, "num_attention_heads": 4 if tiny else 16},
            **{"num_hidden_layers": text_layers, "project_dim": 40 if tiny else 768, "vocab_size": rows},
            "max_position_embeddings": 66 if tiny else 514,
        },
    )
    model = AltCLIPModel(config).eval()
    roughen(model)
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", hf_preprocessor(side))
    return model


def _write(folder: Path, size: Size) -> Written:
    full = size == "full"
    depths = {"layers": 24, "text_layers": 24, "room": VOCABULARY} if full else {}
    model = write_altclip(folder, tiny=size == "tiny", **depths)
    image, text = masked_features(model, pad_id=1)
    length = 64 if size == "tiny" else 512
    return Written(str(folder), image, text, tokenize(folder, length), prepare(folder))


MODELS = {"altclip": _write}
