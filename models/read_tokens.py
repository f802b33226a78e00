"""Which of a tower's tokens its embedding depends on: what routers are asked about, counted and compared on.

Behind the pooled token of a causal text nothing reaches the embedding, and padding that attention does not see never does. In a tower's
last block only the pooled token is read, where one is pooled.
Shapes: N pictures or texts, T tokens, L positions of a text.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeclip.models.clip import ImageTower, TextTower


def read_tokens(tower: ImageTower | TextTower, inputs: Tensor) -> Tensor:
    """Of every block but the last: (N, 3, H, W) pixels or (N, L) ids -> (N, T) bool, False where a token is padding.

    A tower that attends to padding as to text (SigLIP's) reads all.
    """
    if isinstance(tower, ImageTower):
        return torch.ones(len(inputs), tower.config.tokens, dtype=torch.bool, device=inputs.device)
    words = inputs != tower.config.pad_id
    if tower.class_token is not None:  # padding is hidden one position late, see models/clip.py
        words = F.pad(words, (0, tower.config.context_length - inputs.shape[1]), value=False)
        seen = F.pad(words, (1, 0), value=True)
        seen[:, -1] = True
        return seen
    places = torch.arange(inputs.shape[1], device=inputs.device)
    pooled = tower.pooled_position(inputs)[:, None]
    if tower.config.causal:
        return places <= pooled
    return words | (places == pooled) if tower.config.mask_padding else torch.ones_like(words)


def pooled_token(tower: ImageTower | TextTower, inputs: Tensor) -> Tensor | None:
    """(N, T) bool: the token that becomes the embedding, which is all that is read of the last block; None: several are."""
    read = read_tokens(tower, inputs)
    places = torch.arange(read.shape[1], device=inputs.device)
    if isinstance(tower, ImageTower):
        return (places == 0).expand_as(read) if tower.config.pool == "cls" else None
    if tower.class_token is not None:
        return (places == read.shape[1] - 1).expand_as(read)
    return places == tower.pooled_position(inputs)[:, None]
