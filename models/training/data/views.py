"""A view of a picture by its number: drawn again it is the same crop, whatever size it is resized to."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.models.training.data.augment import augmented
from edgeclip.models.training.recipe import Augmentation
from edgeclip.runtime.images.decode import Picture


def dice(seed: int, key: str, number: int) -> Generator:
    """What decides view `number` of the picture of this key. Augmentation draws in the same order for every size and filter."""
    digest = hashlib.sha256(key.encode(errors="replace")).digest()
    return np.random.default_rng((seed, number, int.from_bytes(digest[:16], "big")))


def view(
    picture: Picture, spec: Preprocessing, how: Augmentation, seed: int, key: str, number: int
) -> NDArray[np.float32]:
    """(3, H, W) float32, normalised: the view as a model of this preprocessing sees it.

    Raises:
        InputError: the picture cannot be decoded.
    """
    return augmented(picture, spec, how, dice(seed, key, number), key)
