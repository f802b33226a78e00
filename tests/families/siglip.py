"""`SiglipModel` of transformers: SigLIP, and SigLIP 2 at fixed resolutions, with the tokenizer of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tests.checkpoints import roughen
from tests.families import Size, Write, Written
from tests.families.transformers_models import features, prepare, tokenize
from tests.sentencepieces import gemma_tokenizer, write_siglip_tokenizer

Texts = Literal["siglip", "siglip multilingual", "gemma"]


@dataclass(frozen=True)
class Shape:
    """Sizes of both towers, which are alike but for what they read."""

    width: int
    heads: int
    mlp_width: int
    layers: int
    patch: int
    side: int
    texts: Texts
    vocab_size: int


TINY = Shape(64, 4, 112, 2, 16, 32, "siglip", 0)
SHAPES = {
    "siglip-B/16": Shape(768, 12, 3072, 12, 16, 224, "siglip", 32000),
    "siglip-SO400M/14-384": Shape(1152, 16, 4304, 27, 14, 384, "siglip", 32000),
    "siglip-B/16-256-multilingual": Shape(768, 12, 3072, 12, 16, 256, "siglip multilingual", 250000),
    "siglip2-B/32-256": Shape(768, 12, 3072, 12, 32, 256, "gemma", 256000),
    "siglip2-L/16-512": Shape(1024, 16, 4096, 24, 16, 512, "gemma", 256000),
    "siglip2-SO400M/14": Shape(1152, 16, 4304, 27, 14, 224, "gemma", 256000),
}


def write_siglip(
    folder: Path, shape: Shape = TINY, *, texts: Texts = "siglip", layers: int = 2, vocab_size: int = 0
) -> Any:
    """A SiglipModel folder with tokenizer and image processor. -> the model itself, in eval mode.

    Args:
        vocab_size: 0 = as many rows as the tokenizer has ids.
    """
    from transformers import SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    if texts == "gemma":
        tokenizer = gemma_tokenizer()
        tokenizer.save_pretrained(folder)
        ids = len(tokenizer)
    else:
        ids = write_siglip_tokenizer(folder, texts)
    tower = {
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": layers,
    }
    torch.manual_seed(0)
    model = SiglipModel(
        SiglipConfig(
            vision_config={**tower, "patch_size": shape.patch, "image_size": shape.side},
            text_config={**tower, "vocab_size": vocab_size or ids},
        )
    ).eval()
    roughen(model)
    with torch.no_grad():  # what SigLIP starts its training with
        model.logit_scale.fill_(2.3026)
        model.logit_bias.fill_(-10.0)
    model.save_pretrained(folder)
    size = {"height": shape.side, "width": shape.side}
    resample = 2 if texts == "gemma" else 3
    SiglipImageProcessorPil(size=size, resample=resample).save_pretrained(folder)
    return model


def _write(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        shape = SHAPES[name]
        model = write_siglip(
            folder,
            TINY if size == "tiny" else shape,
            texts=shape.texts,
            layers=shape.layers if size == "full" else 2,
            vocab_size=shape.vocab_size if size == "full" else 0,
        )
        image, text = features(model)
        return Written(str(folder), image, text, tokenize(folder, 64), prepare(folder))

    return write


MODELS = {name: _write(name) for name in SHAPES}
ROWS = {name: "SigLIP 2" for name in SHAPES if name.startswith("siglip2")}
