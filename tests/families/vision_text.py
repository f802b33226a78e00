"""`VisionTextDualEncoderModel` of transformers: clip-italian's pair of towers, and others that people train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.checkpoints import hf_preprocessor, roughen
from tests.families import Size, Write, Written
from tests.families.transformers_models import masked_features, prepare, tokenize
from tests.vocabularies import (
    write_bert_tokenizer,
    write_json,
    write_roberta_tokenizer,
)

# model -> kind of image tower, kind of text tower
PAIRS = {
    "clip-italian": ("clip_vision_model", "bert"),
    "vit-roberta": ("vit", "roberta"),
}
VOCABULARIES = {"bert": 31102, "roberta": 50265}


def write_pair(folder: Path, name: str, size: Size, **text: Any) -> Any:
    """A folder with the model, its tokenizer and image processor. -> the model, in eval mode. `text`: keys of text_config."""
    from transformers import (
        AutoConfig,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
        ViTImageProcessor,
    )

    vision_type, text_type = PAIRS[name]
    tiny, full = size == "tiny", size == "full"
    room = VOCABULARIES[text_type] if full else 0
    if text_type == "bert":
        rows = write_bert_tokenizer(folder, lower=False, room=room)
    else:
        rows = write_roberta_tokenizer(folder, legacy=not full, room=room)
    width, side = (64, 32) if tiny else (768, 224)
    sizes = {
        **{"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 12 if full else 2},
        "num_attention_heads": width // 16 if tiny else 12,
    }
    counted = text_type != "bert"
    positions = {"max_position_embeddings": (64 if tiny else 512) + 2 * counted, "vocab_size": rows}
    eps = {"layer_norm_eps": 1e-5, "type_vocab_size": 1} if counted else {}
    torch.manual_seed(0)
    patch = 16 if tiny or vision_type == "vit" else 32
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        AutoConfig.for_model(vision_type, **sizes, image_size=side, patch_size=patch),
        AutoConfig.for_model(text_type, **{**sizes, **positions, **eps, **text}),
        projection_dim=32 if tiny else 512,
    )
    model = VisionTextDualEncoderModel(config).eval()
    roughen(model)
    model.save_pretrained(folder)
    if vision_type == "vit":
        ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    else:
        write_json(folder / "preprocessor_config.json", hf_preprocessor(side))
    return model


def _write(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        model = write_pair(folder, name, size)
        pad = model.config.text_config.pad_token_id
        image, text = masked_features(model, pad)
        length = model.config.text_config.max_position_embeddings - (0 if PAIRS[name][1] == "bert" else 2)
        return Written(str(folder), image, text, tokenize(folder, length), prepare(folder))

    return write


MODELS = {name: _write(name) for name in PAIRS}
