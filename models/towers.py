"""The towers that a dual encoder may be made of: one file and one line each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# kind -> (module, config class, module, tower class). A config offers what models/config.py asks of one and names its kind; a tower
# is built as tower(config, embed_dim) and gives (N, embed_dim), not yet of unit length.
TOWERS = {
    "vit": ("edgeclip.models.config", "ImageConfig", "edgeclip.models.clip", "ImageTower"),
    "resnet": ("edgeclip.models.resnet", "ResNetConfig", "edgeclip.models.resnet", "ResNetTower"),
    "pooled_vit": (
        "edgeclip.models.pooled_vit",
        "PooledVitConfig",
        "edgeclip.models.pooled_vit",
        "PooledVitTower",
    ),
    "encoder": (
        "edgeclip.models.text_encoder",
        "EncoderConfig",
        "edgeclip.models.text_encoder",
        "TextEncoderTower",
    ),
    "t5": ("edgeclip.models.t5", "T5Config", "edgeclip.models.t5", "T5Tower"),
    "timm": ("edgeclip.models.timm_tower", "TimmConfig", "edgeclip.models.timm_tower", "TimmTower"),
    "transformer": ("edgeclip.models.config", "TextConfig", "edgeclip.models.clip", "TextTower"),
}


def config_class(kind: str) -> type[Any]:
    """The class of a kind's config. Raises TypeError for an unknown kind."""
    module, name, _, _ = _entry(kind)
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


def build_tower(config: Any, embed_dim: int) -> nn.Module:
    """A tower of the kind that its config names."""
    _, _, module, name = _entry(config.KIND)
    tower: nn.Module = getattr(importlib.import_module(module), name)(config, embed_dim)
    return tower


def _entry(kind: str) -> tuple[str, str, str, str]:
    if kind not in TOWERS:
        raise TypeError(f"tower kind {kind!r}, expected one of {', '.join(TOWERS)}")
    return TOWERS[kind]
