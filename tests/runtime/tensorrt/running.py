"""What the tests of running engines share."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.runtime.engines import (
    EngineOptions,
    Slot,
    open_variant,
)
from tests.runtime.toy import SIDE, image_reference

EXACT = {"rtol": 0, "atol": 1e-6}


def image(toy: Bundle) -> Any:
    return toy.manifest.variants_of("image")[0]


def text(toy: Bundle) -> Any:
    return toy.manifest.variants_of("text")[0]


def opened(toy: Bundle, name: str = "tensorrt", **options: Any) -> Any:
    return open_variant(name, toy, image(toy), EngineOptions(**options))


def pixels(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def filled(engine: Any, count: int, seed: int = 0) -> Slot:
    slot: Slot = engine.slot(count)
    slot.inputs["pixels"][:] = pixels(count, seed)
    return slot


def check(slot: Slot) -> None:
    np.testing.assert_allclose(slot.outputs["embeddings"], image_reference(slot.inputs["pixels"]), **EXACT)
