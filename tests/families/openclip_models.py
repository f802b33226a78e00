"""What the families of open_clip have in common: embeddings, ids and pixels as open_clip's own classes make them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from tests.checkpoints import openclip_config, write_openclip
from tests.families import Size, Write, Written

# Of a text tower whose vocabulary is cut to what a test needs.
TINY_TEXT = {"width": 48, "heads": 4, "vocab_size": 714}


def write(
    arch: str,
    *,
    tag: str = "",
    real: dict[str, Any] | None = None,
    tiny: dict[str, Any] | None = None,
    tokenizer: Callable[[Path], int] | None = None,
) -> Write:
    """A model of open_clip's.

    Args:
        tag: whose preprocessing it has; "" = open_clip's default.
        real, tiny: settings of the image tower at these sizes, over open_clip's own.
        tokenizer: writes that of Hugging Face which the config names, and gives the rows that it needs; None = open_clip's own.
    """
    from open_clip.pretrained import get_pretrained_cfg

    preprocessing = get_pretrained_cfg(arch, tag) if tag else None

    def written(folder: Path, size: Size) -> Written:
        config = openclip_config(arch, layers=None)
        if size != "full":
            config["vision_cfg"].update(
                {"layers": 1 if size == "tiny" else 2, **((real if size == "real" else tiny) or {})}
            )
            config["text_cfg"].update({"layers": 2, **(TINY_TEXT if size == "tiny" else {})})
            if "multimodal_cfg" in config:
                config["multimodal_cfg"].update(layers=1, width=config["text_cfg"].get("width", 512), heads=4)
        if size == "tiny":
            config["embed_dim"] = 32
        if tokenizer is not None:
            config["text_cfg"]["vocab_size"] = tokenizer(folder)
        model = write_openclip(folder, config, preprocessing=preprocessing)
        return of(folder, model, with_ids=size != "tiny")

    return written


def of(folder: Path, model: Any, *, with_ids: bool = True, tolerance: float = 1e-6) -> Written:
    """A folder that open_clip wrote, and the model that is in it."""

    def text(ids: torch.Tensor) -> torch.Tensor:
        """open_clip takes texts at their full length only."""
        rows: torch.Tensor = model.encode_text(F.pad(ids, (0, model.context_length - ids.shape[1])))
        return rows

    return Written(
        str(folder),
        model.encode_image,
        text,
        tokenize(folder) if with_ids else None,
        prepare(folder),
        tolerance,
    )


def tokenize(folder: Path) -> Callable[[Sequence[str]], NDArray[np.int64]]:
    """Ids by the tokenizer that the folder's config speaks of."""
    import open_clip

    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    return lambda texts: np.array(tokenizer(list(texts)))


def prepare(folder: Path) -> Callable[[Image.Image], NDArray[np.float32]]:
    """Pixels as the folder's config says."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    data = json.loads((folder / "open_clip_config.json").read_text())
    size = data["model_cfg"]["vision_cfg"].get("image_size", 224)
    settings = merge_preprocess_dict(asdict(PreprocessCfg()), {**data["preprocess_cfg"], "size": size})
    transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)

    def pixels(picture: Image.Image) -> NDArray[np.float32]:
        made: torch.Tensor = transform(picture)
        return made.numpy()

    return pixels
