"""What transformers itself makes of pictures and texts: the other side of every end-to-end comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import normalize

LABELS = (
    "cat", "dog", "horse", "bicycle", "pizza", "train", "boat", "traffic light", "child", "street", "kitchen", "field",
    "umbrella", "bird", "clock", "laptop", "bus", "bear", "surfer", "bowl of soup",
)  # fmt: skip
TEXTS = ("a photo of a cat", "two dogs, running", "", "Caf\u00e9 \U0001f431 !!", "tiles " * 90, "東京の夜")
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """transformers' results, every row of unit length."""

    pixels: Array  # (N, 3, H, W) by its own processor
    images: Array  # (N, D)
    texts: Array  # of TEXTS
    labels: Array  # of LABELS in the prompt "a photo of a {}."
    scale: float

    def scores(self) -> NDArray[np.float64]:
        """(N, labels): its zero-shot probabilities."""
        logits = self.scale * self.images.astype(np.float64) @ self.labels.T.astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return scores


def reference(model: Any, folder: Path, pictures: Sequence[Path]) -> Reference:
    """Run a CLIPModel with the processor and tokenizer that lie in its folder."""
    from transformers import CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor, tokenizer = (
        CLIPImageProcessorPil.from_pretrained(folder),
        CLIPTokenizer.from_pretrained(folder),
    )
    opened = [Image.open(path).convert("RGB") for path in pictures]
    pixels = np.stack(processor(images=opened, return_tensors="np")["pixel_values"])

    def embed_texts(texts: Sequence[str]) -> Array:
        ids = tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        )
        rows: Array = normalize(model.get_text_features(ids.input_ids).pooler_output, dim=-1).numpy()
        return rows

    with torch.no_grad():
        parts = [
            model.get_image_features(torch.from_numpy(pixels[i : i + 16])).pooler_output
            for i in range(0, len(pixels), 16)
        ]
        images = normalize(torch.cat(parts), dim=-1).numpy()
        labels = embed_texts([f"a photo of a {label}." for label in LABELS])
        return Reference(pixels, images, embed_texts(TEXTS), labels, float(model.logit_scale.exp()))
