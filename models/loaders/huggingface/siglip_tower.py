"""One tower of SigLIP alone: transformers' `SiglipTextModel` and `SiglipVisionModel`. See clip_tower.py for what halves share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.errors import SourceError
from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig
from edgeclip.models.loaders.checkpoint import Rule
from edgeclip.models.loaders.huggingface import siglip
from edgeclip.models.loaders.huggingface.clip_tower import RENAMED, without_prefix
from edgeclip.models.loaders.huggingface.siglip import FAMILY, PROCESSOR, ignorable, read_text

__all__ = ["FAMILY", "PROCESSOR", "RENAMED", "ignorable", "read_config", "read_text", "rules"]

_CLASSES = {"siglip_text_model": "SiglipTextModel", "siglip_vision_model": "SiglipVisionModel"}


def read_config(data: dict[str, Any], path: Path) -> ClipConfig:
    """A tower's config.json as ours. Raises SourceError on an impossible value, or one of another model."""
    own = _CLASSES[data["model_type"]]
    if data.get("architectures", [own]) != [own]:
        raise SourceError(
            f'{path}: architectures is {data["architectures"]!r}, expected ["{own}"]. It belongs to another model.'
        )
    if own == "SiglipTextModel":
        text, width = siglip.read_text_config({"text_config": data}, path)
        return ClipConfig(width, None, text)
    image = siglip.read_image({"vision_config": data}, path)
    return ClipConfig(image.blocks.width, image, None)


def rules(config: ClipConfig) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    found = siglip.image_rules(config.image) if isinstance(config.image, ImageConfig) else {}
    if isinstance(config.text, TextConfig):
        found |= siglip.text_rules(config.text)
    return without_prefix(found)
