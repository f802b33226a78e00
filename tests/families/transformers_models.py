"""What the families of transformers have in common: embeddings, ids and pixels as transformers' own classes make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image


def features(model: Any) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """Image and text embeddings of a model with get_image_features and get_text_features."""

    def pooled(output: Any) -> torch.Tensor:
        found: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
        return found

    return (
        lambda pixels: pooled(model.get_image_features(pixel_values=pixels)),
        lambda ids: pooled(model.get_text_features(input_ids=ids)),
    )


def masked_features(
    model: Any, pad_id: int
) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """Like `features`, of a model that hides padding by the mask that its tokenizer makes."""
    image, _ = features(model)
    return (
        image,
        lambda ids: (
            model.get_text_features(input_ids=ids, attention_mask=ids.ne(pad_id).long()).pooler_output
        ),
    )


def tokenize(folder: Path, length: int) -> Callable[[Sequence[str]], NDArray[np.int64]]:
    """Ids by the tokenizer that the folder holds."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(texts: Sequence[str]) -> NDArray[np.int64]:
        made = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True)
        return np.array(made["input_ids"])

    return ids


def prepare(folder: Path) -> Callable[[Image.Image], NDArray[np.float32]]:
    """Pixels by the image processor that the folder holds, in Pillow's form."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)

    def pixels(picture: Image.Image) -> NDArray[np.float32]:
        made: NDArray[np.float32] = processor(picture, return_tensors="np")["pixel_values"][0]
        return made

    return pixels
