"""OpenCLIP's ResNets: OpenAI's RN50 to RN50x64, and those that others trained on their plan."""

from __future__ import annotations

from typing import Any

from edgeclip.errors import SourceError
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import Rule, Weights, paired
from edgeclip.models.loaders.openclip.config import Shared
from edgeclip.models.resnet import STRIDE, ResNetConfig

KEYS: dict[str, Any] = {
    "layers": None,
    "width": 768,
    "head_width": 64,
    "image_size": 224,
    "patch_size": None,  # null in open_clip's own configs
    "output_tokens": False,
}


def matches(own: Any) -> bool:
    """A depth a stage instead of one depth."""
    return isinstance(own, dict) and isinstance(own.get("layers"), list) and not own.get("timm_model_name")


def read(image: dict[str, Any], shared: Shared) -> ResNetConfig:
    """A `vision_cfg` as ours. QuickGELU is none of its business: a ResNet's activation is ReLU.

    Raises:
        SourceError: no four stages, or a size that they do not divide.
    """
    where, layers = shared.where, image["layers"]
    if len(layers) != 4 or not all(type(n) is int and 0 < n <= common.MOST_LAYERS for n in layers):
        raise SourceError(f"{where}.layers is {layers!r}, expected the depths of four stages.")
    if image["patch_size"] is not None:
        raise SourceError(f"{where}.patch_size is {image['patch_size']!r}, which a ResNet has none of.")
    height, width = common.pair(image["image_size"], f"{where}: image_size")
    if height != width or height % STRIDE:
        raise SourceError(
            f"{where}: image_size is {(height, width)}, expected a square whose side is a multiple of {STRIDE}."
        )
    heads = image["width"] * 32 // image["head_width"]
    common.check_heads(image["width"] * 32, heads, where)
    return ResNetConfig((height, width), (layers[0], layers[1], layers[2], layers[3]), image["width"], heads)


def rules(config: ResNetConfig, weights: Weights) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    found: dict[str, Rule] = {}
    for i in range(3):
        found |= _conv(f"image.stem.{i}", f"visual.conv{i + 1}", f"visual.bn{i + 1}")
    number = 0
    for stage, depth in enumerate(config.layers, 1):
        for i in range(depth):
            block, layer = f"image.blocks.{number}", f"visual.layer{stage}.{i}"
            for k in range(3):
                found |= _conv(f"{block}.convs.{k}", f"{layer}.conv{k + 1}", f"{layer}.bn{k + 1}")
            if not i:
                found |= _conv(f"{block}.shortcut", f"{layer}.downsample.0", f"{layer}.downsample.1")
            number += 1
    pool = "visual.attnpool"
    found |= paired({"image.pool.q": f"{pool}.q_proj", "image.pool.out": f"{pool}.c_proj"})
    for kind in ("weight", "bias"):
        found[f"image.pool.kv.{kind}"] = Rule((f"{pool}.k_proj.{kind}", f"{pool}.v_proj.{kind}"))
    return {**found, "image.pool.position": Rule((f"{pool}.positional_embedding",))}


def _conv(ours: str, conv: str, norm: str) -> dict[str, Rule]:
    statistics = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{ours}.conv.weight": Rule((f"{conv}.weight",)),
        **{f"{ours}.norm.{kind}": Rule((f"{norm}.{kind}",)) for kind in statistics},
    }
