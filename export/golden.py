"""Golden inputs and outputs that travel in the bundle: what `verify` replays on a device, without the source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from edgeclip.bundle import Preprocessing
from edgeclip.export.samples import made_up_pictures, pixels_of

PICTURES = (1, 8)  # of the made-up ones: different shapes and colours
TEXTS = ("a photo of a cat", "two dogs", "東京タワーの夜景 🌃")


Golden = tuple[list[NDArray[np.uint8]], NDArray[np.float32]]  # pictures, and what the runtime makes of them


def golden_pictures() -> list[NDArray[np.uint8]]:
    """(H, W, 3) RGB each."""
    every = made_up_pictures(max(PICTURES) + 1)
    return [every[i] for i in PICTURES]


def golden_pixels(spec: Preprocessing) -> Golden:
    """-> (pictures (H, W, 3) uint8, what the runtime makes of them (N, 3, H, W))."""
    pictures = golden_pictures()
    return pictures, pixels_of(pictures, spec)


def golden_file(
    pictures: Sequence[NDArray[np.uint8]],
    pixels: NDArray[np.float32] | None,
    image_rows: NDArray[np.float32] | None,
    input_ids: NDArray[np.int32] | None,
    text_rows: NDArray[np.float32] | None,
    merged: Mapping[int, NDArray[np.float32]] | None = None,
    others: Mapping[str, NDArray[Any]] | None = None,
) -> bytes:
    """The safetensors file's content, without a missing tower's part; its layout is described in runtime/replay.py.

    Args:
        merged: (N, D) image rows by the number of tokens that each block merges away.
        others: what towers beside those of pictures and texts keep, by array name.
    """
    arrays: dict[str, NDArray[Any] | None] = {
        **{f"pictures/{i}": picture for i, picture in enumerate(pictures)},
        "pixels": pixels,
        "image_embeddings": image_rows,
        **{f"image_embeddings/merge{r}": rows for r, rows in (merged or {}).items()},
        "input_ids": input_ids,
        "text_embeddings": text_rows,
        **(others or {}),
    }
    texts = [] if input_ids is None else TEXTS
    content: bytes = save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None},
        metadata={"texts": json.dumps(texts, ensure_ascii=False)},
    )
    return content
