"""One tower of CLIP alone: transformers' `CLIPTextModel` and `CLIPVisionModel`, and both with their projection.

Bundles of two halves of one model: nothing in the files says that they belong together, so each has a `model_id` of its own, and a
label pack of the text half is refused by the image half. Their vectors may be compared by whoever knows where they come from, as
those of `embed_texts` and `embed_images`; the scale that makes scores of cosines stands in neither half.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeclip.errors import SourceError
from edgeclip.models.config import ClipConfig, ImageConfig, TextConfig
from edgeclip.models.loaders.checkpoint import Rule
from edgeclip.models.loaders.huggingface import clip
from edgeclip.models.loaders.huggingface.blocks import projection_dim
from edgeclip.models.loaders.huggingface.clip import FAMILY, ignorable, read_text

__all__ = ["FAMILY", "RENAMED", "ignorable", "read_config", "read_text", "rules"]

# From release 5 on a tower without projection leaves this out.
_PREFIX = r"^(text_model|vision_model)\."
RENAMED = {_PREFIX: ""}
# model_type -> class that config.json names, without the suffix of those that project
_CLASSES = {"clip_text_model": "CLIPTextModel", "clip_vision_model": "CLIPVisionModel"}
_PROJECTS = "WithProjection"

log = logging.getLogger(__name__)


def read_config(data: dict[str, Any], path: Path) -> ClipConfig:
    """A tower's config.json as ours.

    Raises:
        SourceError: an impossible value, or no word about whether the tower projects.
    """
    own = _CLASSES[data["model_type"]]
    stated = data.get("architectures")
    if stated not in ([own], [own + _PROJECTS]):
        raise SourceError(
            f'{path}: architectures is {stated!r}, expected ["{own}"] or ["{own}{_PROJECTS}"]: it says whether the tower '
            "projects. Correct it, or save the model again with transformers."
        )
    projects = stated == [own + _PROJECTS]
    image, text = None, None
    if own == "CLIPTextModel":
        text = replace(clip.read_text_config({"text_config": data}, path), projection=projects)
        width = text.blocks.width
    else:
        image = replace(clip.read_image({"vision_config": data}, path), projection=projects)
        width = image.blocks.width
    if not projects:
        log.warning("%s: no projection: its vectors cannot be compared with those of the other tower", path)
    return ClipConfig(projection_dim(data, path) if projects else width, image, text)


def rules(config: ClipConfig) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    found: dict[str, Rule] = {}
    if isinstance(config.image, ImageConfig):
        found |= clip.image_rules(config.image)
    if isinstance(config.text, TextConfig):
        found |= clip.text_rules(config.text)
    return without_prefix(found)


def without_prefix(rules: dict[str, Rule]) -> dict[str, Rule]:
    """The same for tensors whose names were shortened by RENAMED."""
    return {
        ours: replace(rule, sources=tuple(re.sub(_PREFIX, "", name) for name in rule.sources))
        for ours, rule in rules.items()
    }
