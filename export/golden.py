"""Golden inputs and outputs that travel in the bundle: what `verify` replays on a device, without the source."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from edgeclip.bundle import Preprocessing
from edgeclip.export.parity import source_rows
from edgeclip.export.routing import NEAR, watches
from edgeclip.export.samples import TEXTS as MORE_TEXTS
from edgeclip.export.samples import encode, made_up_pictures, pixels_of
from edgeclip.models.source import Source

PICTURES = (1, 8)  # of the made-up ones: different shapes and colours
TEXTS = ("a photo of a cat", "two dogs", "東京タワーの夜景 🌃")


Golden = tuple[list[NDArray[np.uint8]], NDArray[np.float32]]  # pictures, and what the runtime makes of them


@dataclass(frozen=True)
class GoldenInputs:
    """What is replayed."""

    pictures: Sequence[NDArray[np.uint8]]  # (H, W, 3) RGB each
    pixels: NDArray[np.float32] | None  # what the runtime makes of them; None: no image tower
    texts: Sequence[str]
    input_ids: NDArray[np.int32] | None


def golden_inputs(source: Source, tokenizer: Path) -> GoldenInputs:
    """Of a source: always the same pictures and texts, but that none is taken in which a token is near to taking another expert.

    What another device rounds otherwise would look like a fault there.
    """
    every, spec = made_up_pictures(), source.preprocessing

    def near(kind: str, given: NDArray[Any]) -> bool:
        watching = watches([(kind, getattr(source.model, kind))])
        if not watching:
            return False
        source_rows(source, given if kind == "image" else None, given if kind == "text" else None, watching)
        return bool(watching[kind].routing().everywhere.min() < NEAR)

    pictures = [every[i] for i in PICTURES]
    if spec is not None and source.model.image is not None:
        places = _clear(PICTURES, len(every), lambda i: near("image", pixels_of([every[i]] * 2, spec)[:1]))
        pictures = [every[i] for i in places]
    texts: tuple[str, ...] = TEXTS
    settings = source.text
    if settings is not None:
        more = (*TEXTS, *(text for text in MORE_TEXTS if text not in TEXTS))
        kept = _clear(
            range(len(TEXTS)),
            len(more),
            lambda i: near("text", encode([more[i]], tokenizer, settings).input_ids),
        )
        texts = tuple(more[i] for i in kept)
    return GoldenInputs(
        pictures if spec is not None else [],
        pixels_of(pictures, spec) if spec is not None and source.model.image is not None else None,
        texts if settings is not None else [],
        None if settings is None else encode(texts, tokenizer, settings).input_ids,
    )


def _clear(wanted: Sequence[int], every: int, near: Callable[[int], bool]) -> list[int]:
    """As many as are wanted, those first, of which none is near a tie; where there are too few, those that are wanted."""
    found: list[int] = []
    for i in (*wanted, *(i for i in range(every) if i not in wanted)):
        if not near(i):
            found.append(i)
        if len(found) == len(wanted):
            return found
    return list(wanted)


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
    texts: Sequence[str] = TEXTS,
    others: Mapping[str, NDArray[Any]] | None = None,
) -> bytes:
    """The safetensors file's content, without a missing tower's part; its layout is described in runtime/replay.py.

    Args:
        texts: that `input_ids` were made of.
        others: what variants that lose something say, and towers beside those of pictures and texts, by array name.
    """
    arrays: dict[str, NDArray[Any] | None] = {
        **{f"pictures/{i}": picture for i, picture in enumerate(pictures)},
        "pixels": pixels,
        "image_embeddings": image_rows,
        "input_ids": input_ids,
        "text_embeddings": text_rows,
        **(others or {}),
    }
    said = [] if input_ids is None else list(texts)
    content: bytes = save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None},
        metadata={"texts": json.dumps(said, ensure_ascii=False)},
    )
    return content
