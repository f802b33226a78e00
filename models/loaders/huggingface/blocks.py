"""What the families of Hugging Face have in common: config sections, and the blocks that transformers' CLIP is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.errors import SourceError
from edgeclip.models.config import Activation, TransformerConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import Rule, paired

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def section(data: dict[str, Any], name: str, defaults: dict[str, Any], path: Path) -> dict[str, Any]:
    """A tower's section over the family's defaults. Raises SourceError where it is no object or a value is of another kind."""
    # old configs repeat a section as NAME_dict; where present it wins, its defaults included
    own, older = data.get(name) or {}, data.get(f"{name}_dict")
    if not isinstance(own, dict) or not isinstance(older, dict | None):
        raise SourceError(f"{path}: {name} is no object. The file is damaged: fetch it again.")
    return common.overlay(defaults, own if older is None else {**own, **defaults, **older}, f"{path}: {name}")


def projection_dim(data: dict[str, Any], path: Path, default: int = 512) -> int:
    """The embedding width that a config.json states at its top. Raises SourceError where it is no number."""
    own = {"projection_dim": data.get("projection_dim")}
    found: int = common.overlay({"projection_dim": default}, own, str(path))["projection_dim"]
    return found


def blocks(data: dict[str, Any], where: str) -> TransformerConfig:
    """The blocks that a tower's section describes. Raises SourceError on an unknown activation or heads that do not fit."""
    activation = ACTIVATIONS.get(data["hidden_act"])
    if activation is None:
        raise SourceError(
            f"{where}: hidden_act is {data['hidden_act']!r}, expected one of {', '.join(ACTIVATIONS)}."
        )
    common.check_heads(data["hidden_size"], data["num_attention_heads"], where)
    return TransformerConfig(
        width=data["hidden_size"],
        layers=data["num_hidden_layers"],
        heads=data["num_attention_heads"],
        mlp_width=data["intermediate_size"],
        activation=activation,
        norm_eps=data["layer_norm_eps"],
    )


def layer_rules(ours: str, theirs: str, layers: int) -> dict[str, Rule]:
    """Where the blocks of a tower come from: "image" from "vision_model", for example."""
    found: dict[str, Rule] = {}
    for i in range(layers):
        block, layer = f"{ours}.blocks.{i}", f"{theirs}.encoder.layers.{i}"
        found |= paired(
            {
                f"{block}.norm1": f"{layer}.layer_norm1",
                f"{block}.norm2": f"{layer}.layer_norm2",
                f"{block}.attention.out": f"{layer}.self_attn.out_proj",
                f"{block}.mlp.fc1": f"{layer}.mlp.fc1",
                f"{block}.mlp.fc2": f"{layer}.mlp.fc2",
            }
        )
        for kind in ("weight", "bias"):
            found[f"{block}.attention.qkv.{kind}"] = Rule(
                tuple(f"{layer}.self_attn.{part}_proj.{kind}" for part in "qkv")
            )
    return found
