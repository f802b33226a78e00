"""The blocks of open_clip's own transformers, which its ViTs and its text towers share."""

from __future__ import annotations

from typing import Any

from edgeclip.errors import SourceError
from edgeclip.models.config import Activation, TransformerConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import Rule, Weights, paired
from edgeclip.models.loaders.openclip.config import Shared

# What a section may say of them, with open_clip's defaults.
KEYS: dict[str, Any] = {
    "layers": 12,
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "act_kwargs": {},
    "norm_kwargs": {},
}


def blocks(data: dict[str, Any], heads: int, shared: Shared) -> TransformerConfig:
    """The blocks of one of open_clip's own transformers. Raises SourceError on a setting that edgeclip does not know."""
    where = shared.where
    for name, known in (("act_kwargs", {"approximate"}), ("norm_kwargs", {"eps"})):
        if extra := sorted(set(data[name]) - known):
            raise SourceError(f"{where}.{name}: {extra[0]!r} is not a setting that edgeclip knows.")
    common.check_heads(data["width"], heads, where)
    tanh = data["act_kwargs"].get("approximate") == "tanh"
    activation: Activation = "quick_gelu" if shared.quick_gelu else "gelu_tanh" if tanh else "gelu"
    return TransformerConfig(
        width=data["width"],
        layers=data["layers"],
        heads=heads,
        mlp_width=int(data["width"] * data["mlp_ratio"]),
        activation=activation,
        norm_eps=float(data["norm_kwargs"].get("eps", 1e-5)),
    )


def layer_rules(ours: str, theirs: str, layers: int, weights: Weights) -> dict[str, Rule]:
    """Where the blocks of a tower come from: "image" from "visual", for example. LayerScale is multiplied in."""
    found: dict[str, Rule] = {}
    for i in range(layers):
        block, layer = f"{ours}.blocks.{i}", f"{theirs}.transformer.resblocks.{i}"
        found |= paired(
            {
                f"{block}.norm1": f"{layer}.ln_1",
                f"{block}.norm2": f"{layer}.ln_2",
                f"{block}.mlp.fc1": f"{layer}.mlp.c_fc",
            }
        )
        for kind in ("weight", "bias"):
            found[f"{block}.attention.qkv.{kind}"] = Rule((f"{layer}.attn.in_proj_{kind}",))
            for mine, other, scale in (
                ("attention.out", "attn.out_proj", "ls_1"),
                ("mlp.fc2", "mlp.c_proj", "ls_2"),
            ):
                gain = f"{layer}.{scale}.gamma"
                gain = gain if gain in weights.tensors else ""
                found[f"{block}.{mine}.{kind}"] = Rule((f"{layer}.{other}.{kind}",), gain=gain)
    return found
