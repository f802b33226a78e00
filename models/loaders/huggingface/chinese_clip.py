"""`ChineseCLIPModel` of transformers: CLIP's vision transformer with BERT or RoBERTa-wwm for Chinese.

Facts of the format follow transformers: the text is the first token's last hidden state, projected without BERT's pooler.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.models.config import ClipConfig, ImageConfig
from edgeclip.models.loaders.bert_encoder import BERT, encoder_config, encoder_rules, read_text
from edgeclip.models.loaders.checkpoint import Rule
from edgeclip.models.loaders.huggingface import clip
from edgeclip.models.loaders.huggingface.blocks import projection_dim, section
from edgeclip.models.text_encoder import EncoderConfig

__all__ = ["FAMILY", "PROCESSOR", "ignorable", "read_config", "read_text", "rules"]

FAMILY = "chinese_clip"
PROCESSOR = "ChineseCLIPImageProcessor"


def read_config(data: dict[str, Any], path: Path) -> ClipConfig:
    """A `ChineseCLIPModel`'s config.json as ours. Raises SourceError on an impossible value."""
    text = encoder_config(section(data, "text_config", BERT, path), f"{path}: text_config")
    return ClipConfig(projection_dim(data, path), clip.read_image(data, path), text)


def rules(config: ClipConfig) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    assert isinstance(config.image, ImageConfig)
    assert isinstance(config.text, EncoderConfig)
    return {
        "logit_scale": Rule(("logit_scale",)),
        "text.projection.weight": Rule(("text_projection.weight",)),
        **clip.image_rules(config.image),
        **encoder_rules(config.text, "text_model"),
    }


def ignorable(name: str) -> bool:
    """Whether a tensor of the checkpoint is no weight, or of BERT's pooler, which the model does not use."""
    return clip.ignorable(name) or name.startswith("text_model.pooler.")
