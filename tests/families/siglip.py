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
    write_preprocessing(folder, shape.side, resample=2 if texts == "gemma" else 3)
    return model


def write_preprocessing(folder: Path, side: int, resample: int = 3) -> None:
    """preprocessor_config.json by the image processor itself."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    size = {"height": side, "width": side}
    SiglipImageProcessorPil(size=size, resample=resample).save_pretrained(folder)


def write_tower(folder: Path, name: str, shape: Shape = TINY, layers: int = 2) -> Any:
    """One tower's folder, by transformers' class of that name. -> the model, in eval mode."""
    import transformers

    config: dict[str, Any] = {
        **{"hidden_size": shape.width, "intermediate_size": shape.mlp_width},
        **{"num_attention_heads": shape.heads, "num_hidden_layers": layers},
    }
    if name == "SiglipTextModel":
        config |= {"vocab_size": write_siglip_tokenizer(folder)}
    else:
        config |= {"patch_size": shape.patch, "image_size": shape.side}
        write_preprocessing(folder, shape.side)
    torch.manual_seed(0)
    model = getattr(transformers, name)(
        getattr(transformers, name.replace("Model", "Config"))(**config)
    ).eval()
    roughen(model)
    model.save_pretrained(folder)
    return model


def _write(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        shape = SHAPES[name]
        model = write_siglip(
            folder,
            TINY if size == "tiny" else shape,
            texts=shape.texts,
            layers={"tiny": 1, "real": 2, "full": shape.layers}[size],
            vocab_size=shape.vocab_size if size == "full" else 0,
        )
        image, text = features(model)
        return Written(str(folder), image, text, tokenize(folder, 64), prepare(folder))

    return write


def _write_tower(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        shape = SHAPES["siglip-B/16"]
        depth = {"tiny": 1, "real": 2, "full": shape.layers}[size]
        model = write_tower(folder, name, TINY if size == "tiny" else shape, depth)

        def rows(inputs: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = model(inputs).pooler_output
            return found

        if name == "SiglipTextModel":
            return Written(str(folder), text=rows, tokenize=tokenize(folder, 64))
        return Written(str(folder), image=rows, prepare=prepare(folder))

    return write


MODELS = {
    **{name: _write(name) for name in SHAPES},
    **{name: _write_tower(name) for name in ("SiglipTextModel", "SiglipVisionModel")},
}
ROWS = {
    **{name: "SigLIP 2" for name in SHAPES if name.startswith("siglip2")},
    **dict.fromkeys(("SiglipTextModel", "SiglipVisionModel"), "Single towers"),
}
