"""One tower of CLIP alone, as transformers writes it, with and without its projection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.checkpoints import DEPTHS, SIZES, hf_preprocessor, roughen, write_hf_tokenizer
from tests.families import Size, Write, Written
from tests.families.transformers_models import prepare, tokenize


def write_tower(folder: Path, name: str, sizes: str = "tiny", layers: int = 2) -> Any:
    """A tower's folder, written by transformers. -> the model, in eval mode.

    Args:
        name: of transformers' class.
        sizes: an entry of tests.checkpoints.SIZES.
    """
    import transformers

    width, heads, patch, side, text_width, text_heads, embed = SIZES[sizes]
    shared = {"num_hidden_layers": layers, "projection_dim": embed, "hidden_act": "quick_gelu"}
    if "Text" in name:
        vocab = write_hf_tokenizer(folder, 200 if sizes == "tiny" else 48894)
        ids = {"bos_token_id": vocab - 2, "eos_token_id": vocab - 1, "pad_token_id": vocab - 1}
        config: Any = transformers.CLIPTextConfig(
            **shared,
            **ids,
            vocab_size=vocab,
            hidden_size=text_width,
            intermediate_size=4 * text_width,
            num_attention_heads=text_heads,
        )
    else:
        config = transformers.CLIPVisionConfig(
            **shared,
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=heads,
            patch_size=patch,
            image_size=side,
        )
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    roughen(model)
    model.save_pretrained(folder)
    if "Vision" in name:
        (folder / "preprocessor_config.json").write_text(json.dumps(hf_preprocessor(side)))
    return model


def _write(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        text = "Text" in name
        depth = {"tiny": 1, "real": 2, "full": DEPTHS["L/14"][int(text)]}[size]
        model = write_tower(folder, name, "tiny" if size == "tiny" else "L/14", depth)

        def rows(inputs: torch.Tensor) -> torch.Tensor:
            output = model(inputs)
            found: torch.Tensor = next(
                getattr(output, key)
                for key in ("text_embeds", "image_embeds", "pooler_output")
                if hasattr(output, key)
            )
            return found

        if text:
            return Written(str(folder), text=rows, tokenize=tokenize(folder, 77))
        return Written(str(folder), image=rows, prepare=prepare(folder))

    return write


MODELS = {
    name: _write(name)
    for name in (
        "CLIPTextModelWithProjection",
        "CLIPTextModel",
        "CLIPVisionModelWithProjection",
        "CLIPVisionModel",
    )
}
