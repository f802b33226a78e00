"""`ChineseCLIPModel` of transformers, at the sizes of OFA-Sys/chinese-clip-vit-base-patch16 and -large-patch14-336px."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.checkpoints import roughen
from tests.families import Size, Write, Written
from tests.families.transformers_models import masked_features, prepare, tokenize
from tests.vocabularies import write_bert_tokenizer

VOCABULARY = 21128
# image width, layers, heads, patch, picture side; text width, layers, heads; embedding width
SIZES = {
    "tiny": (64, 2, 4, 16, 32, 48, 2, 4, 32),
    "base-patch16": (768, 12, 12, 16, 224, 768, 12, 12, 512),
    "large-patch14-336": (1024, 24, 16, 14, 336, 768, 12, 12, 768),
}


def write_chinese_clip(folder: Path, size: str, *, layers: int | None = 2, room: int = 0, **text: Any) -> Any:
    """A folder with the model, its tokenizer and image processor. -> the model, in eval mode.

    Args:
        layers: of each tower; None: as many as the model has.
        room: rows of the vocabulary, where it shall be larger than what the tests need.
        text: further keys of text_config.
    """
    from transformers import ChineseCLIPConfig, ChineseCLIPImageProcessor, ChineseCLIPModel

    width, depth, heads, patch, side, text_width, text_depth, text_heads, embed = SIZES[size]
    rows = write_bert_tokenizer(folder, legacy=True, room=room)
    torch.manual_seed(0)
    config = ChineseCLIPConfig(
        projection_dim=embed,
        vision_config={
            **{"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers or depth},
            **{"num_attention_heads": heads, "patch_size": patch, "image_size": side},
        },
        text_config={
            **{
                "hidden_size": text_width,
                "intermediate_size": 4 * text_width,
                "num_hidden_layers": layers or text_depth,
            },
            **{"num_attention_heads": text_heads, "vocab_size": rows, **text},
        },
    )
    model = ChineseCLIPModel(config).eval()
    roughen(model)
    model.save_pretrained(folder)
    whole = {"height": side, "width": side}
    ChineseCLIPImageProcessor(size=whole, do_center_crop=False).save_pretrained(folder)
    return model


def _write(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        tiny, full = size == "tiny", size == "full"
        # at "tiny" short texts only: the example that is traced has the full length
        model = write_chinese_clip(
            folder,
            "tiny" if tiny else name,
            layers=None if full else 2,
            room=VOCABULARY if full else 0,
            **({"max_position_embeddings": 64} if tiny else {}),
        )
        image, text = masked_features(model, pad_id=0)
        length = model.config.text_config.max_position_embeddings
        return Written(str(folder), image, text, tokenize(folder, length), prepare(folder))

    return write


MODELS = {f"chinese-clip-{name}": _write(name) for name in SIZES if name != "tiny"}
