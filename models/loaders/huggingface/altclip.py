"""`AltCLIPModel` of transformers: CLIP's vision transformer with XLM-R, whose first token is normed and projected twice.

Facts of the format follow transformers (AltCLIPTextModel and its defaults).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.models.config import ClipConfig, ImageConfig
from edgeclip.models.loaders.bert_encoder import ROBERTA, encoder_config, encoder_rules, read_text
from edgeclip.models.loaders.checkpoint import Rule, paired
from edgeclip.models.loaders.huggingface import clip
from edgeclip.models.loaders.huggingface.blocks import projection_dim, section
from edgeclip.models.text_encoder import EncoderConfig

__all__ = ["FAMILY", "RENAMED", "ignorable", "read_config", "read_text", "rules"]

FAMILY = "altclip"
# Releases of transformers wrote their lists of layers under several names.
RENAMED = {
    r"^vision_model\.encoder\.layer\.": "vision_model.encoder.layers.",
    r"^text_model\.roberta\.encoder\.layers\.": "text_model.roberta.encoder.layer.",
}
_TEXT: dict[str, Any] = {
    **ROBERTA,
    **{"vocab_size": 250002, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    **{
        "intermediate_size": 4096,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    "project_dim": 768,
}


def read_config(data: dict[str, Any], path: Path) -> ClipConfig:
    """An `AltCLIPModel`'s config.json as ours. Raises SourceError on an impossible value."""
    own = section(data, "text_config", _TEXT, path)
    text = encoder_config(
        own,
        f"{path}: text_config",
        counted=True,
        norm_final=True,
        projection="double",
        projection_width=own["project_dim"],
    )
    return ClipConfig(projection_dim(data, path, 768), clip.read_image(data, path), text)


def rules(config: ClipConfig) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    assert isinstance(config.image, ImageConfig)
    assert isinstance(config.text, EncoderConfig)
    return {
        "logit_scale": Rule(("logit_scale",)),
        "text.projection.1.weight": Rule(("text_projection.weight",)),
        **paired({"text.projection.0": "text_model.transformation", "text.norm_final": "text_model.pre_LN"}),
        **clip.image_rules(config.image),
        **encoder_rules(config.text, "text_model.roberta"),
    }


def ignorable(name: str) -> bool:
    """Whether a tensor of the checkpoint is no weight, or of XLM-R's pooler, which the model does not use."""
    return clip.ignorable(name) or name.startswith("text_model.roberta.pooler.")
