"""OpenCLIP's image towers whose trunk is a model of timm: SigLIP, MobileCLIP, ConvNeXt, ViTamin, EVA, Perception Encoder.

timm itself builds the trunk, without weights, and what it built is read: a plain vision transformer becomes the canonical one,
every other trunk stays timm's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from edgeclip.errors import SourceError
from edgeclip.models.config import ImageConfig, ImagePool, TransformerConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import Rule, Weights, paired
from edgeclip.models.loaders.openclip.config import Shared, one_of
from edgeclip.models.timm_tower import Projection, TimmConfig, TimmTower, activation_of, pool_head, pool_name

KEYS: dict[str, Any] = {
    "timm_model_name": "",
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "timm_proj_bias": False,
    "timm_drop": 0.0,
    "timm_drop_path": None,
    "image_size": 224,
    "patch_dropout": 0.0,
}
_PROJECTIONS: dict[str, Projection] = {"linear": "linear", "mlp": "mlp", "none": "none", "": "classifier"}
_POOLS: dict[str, ImagePool] = {"token": "cls", "avg": "avg", "map": "map"}
_MERGED = ".reparam_conv."  # in names of a tower whose parallel branches are one convolution


def matches(own: Any) -> bool:
    """A section that names a model of timm."""
    return isinstance(own, dict) and bool(own.get("timm_model_name"))


def read(image: dict[str, Any], shared: Shared) -> ImageConfig | TimmConfig:
    """A `vision_cfg` as ours.

    Raises:
        SourceError: timm has no such model, or none that makes an embedding of this picture size with this pool and projection.
        MissingExtraError: timm is not installed.
    """
    where, name = shared.where, image["timm_model_name"]
    config = TimmConfig(
        model=name,
        image_size=common.pair(image["image_size"], f"{where}: image_size"),
        timm_pool=image["timm_pool"],
        projection=_PROJECTIONS[one_of(image["timm_proj"], tuple(_PROJECTIONS), f"{where}.timm_proj")],
        projection_bias=image["timm_proj_bias"],
        merged=any(_MERGED in tensor for tensor in shared.tensors),
    )
    try:
        with torch.device("meta"), torch.no_grad():
            tower = TimmTower(config, shared.embed_dim).eval()
            made = tuple(tower(torch.empty(1, 3, *config.image_size)).shape)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise SourceError(
            f"{where}: timm makes no tower of {name!r} for pictures of {config.image_size}, timm_pool {config.timm_pool!r} and "
            f"timm_proj {image['timm_proj']!r} ({reason}). Correct the config, or install the timm that the model was made with."
        ) from error
    if made != (1, shared.embed_dim):
        raise SourceError(
            f"{where}: timm's {name} makes {made[1:]} of a picture, expected the {shared.embed_dim} numbers of embed_dim. "
            "timm_pool or timm_proj belongs to another model."
        )
    return plain_vit(tower) or replace(config, pool=pool_name(tower))


def plain_vit(tower: TimmTower) -> ImageConfig | None:
    """The canonical config of a tower whose trunk is a plain vision transformer; None if any part of it is another."""
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    trunk: Any = tower.trunk
    if type(trunk) is not VisionTransformer or type(trunk.patch_embed) is not PatchEmbed:
        return None
    blocks = {_block(block, trunk) for block in trunk.blocks}
    convolution, sides, size = trunk.patch_embed.proj, trunk.patch_embed.patch_size, tower.config.image_size
    norms = [_eps(trunk.norm_pre), _eps(trunk.norm), _eps(trunk.fc_norm)]
    config, pool = next(iter(blocks)), _POOLS.get(trunk.global_pool)
    unknown = (
        len(blocks) > 1
        or config is None
        or pool is None
        or tower.config.projection == "mlp"
        or trunk.reg_token is not None
        or trunk.pos_embed is None
        or trunk.pos_embed.shape[1] != trunk.patch_embed.num_patches + trunk.num_prefix_tokens
        or trunk.pool_include_prefix
        or not isinstance(trunk.patch_embed.norm, nn.Identity)
        or sides[0] != sides[1]
        or trunk.patch_embed.grid_size != tuple(side // sides[0] for side in size)
        or not set(norms) <= {None, config.norm_eps}
        or (norms[1] is None) == (norms[2] is None)
        or (pool == "map" and (norms[1] is None or trunk.num_prefix_tokens or _pool(trunk) != config))
    )
    if unknown or config is None or pool is None:
        return None
    last = trunk.head if tower.config.projection == "classifier" else getattr(tower.head, "proj", None)
    return ImageConfig(
        blocks=config,
        image_size=size,
        patch_size=sides[0],
        pool=pool,
        class_token=trunk.has_class_token,
        patch_bias=convolution.bias is not None,
        norm_pre=norms[0] is not None,
        # of one token, before and after are the same
        norm_after_pool=norms[2] is not None or pool == "cls",
        projection=isinstance(last, nn.Linear),
        projection_bias=isinstance(last, nn.Linear) and last.bias is not None,
    )


def _block(block: Any, trunk: Any) -> TransformerConfig | None:
    """A residual block as ours, None if it is none of them."""
    from timm.layers import Attention, LayerScale, Mlp
    from timm.models.vision_transformer import Block

    if (type(block), type(block.attn), type(block.mlp)) != (Block, Attention, Mlp):
        return None
    off = (block.attn.q_norm, block.attn.k_norm, block.attn.norm, block.mlp.norm)
    activation, eps = activation_of(block.mlp.act), _eps(block.norm1)
    if (
        activation is None
        or eps is None
        or eps != _eps(block.norm2)
        or block.attn.qkv.bias is None
        or block.attn.attn_dim != trunk.embed_dim
        or not all(isinstance(part, nn.Identity) for part in off)
        or not all(isinstance(scale, nn.Identity | LayerScale) for scale in (block.ls1, block.ls2))
        or getattr(block.attn, "gate", None) is not None
    ):
        return None
    return TransformerConfig(
        width=trunk.embed_dim,
        layers=len(trunk.blocks),
        heads=block.attn.num_heads,
        mlp_width=block.mlp.fc1.out_features,
        activation=activation,
        norm_eps=eps,
    )


def _pool(trunk: Any) -> TransformerConfig | None:
    """The blocks' config as the attention pool has it: ours takes its sizes from there."""
    head = pool_head(trunk.attn_pool)
    if head is None:
        return None
    return TransformerConfig(
        width=trunk.embed_dim,
        layers=len(trunk.blocks),
        heads=head.heads,
        mlp_width=head.mlp.fc1.out_features,
        activation=head.mlp.activation,  # type: ignore[arg-type]
        norm_eps=head.norm.eps,
    )


def _eps(norm: nn.Module) -> float | None:
    """The epsilon of a LayerNorm, None where there is no norm, NaN for one of another kind."""
    if isinstance(norm, nn.Identity):
        return None
    return norm.eps if isinstance(norm, nn.LayerNorm) and norm.bias is not None else float("nan")


def rules(config: ImageConfig | TimmConfig, weights: Weights) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    if isinstance(config, ImageConfig):
        return _vit_rules(config, weights)
    with torch.device("meta"):
        names = TimmTower(config, 1).state_dict()
    for name in names:
        if name.endswith("num_batches_tracked"):  # which not every checkpoint holds, and nothing here reads
            weights.tensors.setdefault(f"visual.{name}", torch.tensor(0))
    return {f"image.{name}": Rule((f"visual.{name}",)) for name in names}


def _vit_rules(config: ImageConfig, weights: Weights) -> dict[str, Rule]:
    trunk = "visual.trunk"
    norm = "fc_norm" if f"{trunk}.fc_norm.weight" in weights.tensors else "norm"
    last = "visual.head.proj" if "visual.head.proj.weight" in weights.tensors else f"{trunk}.head"
    pairs = {
        "image.patches": f"{trunk}.patch_embed.proj",
        "image.norm_pre": f"{trunk}.norm_pre",
        "image.norm_post": f"{trunk}.{norm}",
        "image.projection": last,
    }
    parts = {"q": "q", "kv": "kv", "out": "proj", "norm": "norm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    pairs |= {f"image.head.{ours}": f"{trunk}.attn_pool.{theirs}" for ours, theirs in parts.items()}
    found = {
        "image.class_token": Rule((f"{trunk}.cls_token",)),
        "image.position": Rule((f"{trunk}.pos_embed",)),
        "image.head.probe": Rule((f"{trunk}.attn_pool.latent",)),
    }
    parts = {"norm1": "norm1", "norm2": "norm2", "attention.qkv": "attn.qkv", "mlp.fc1": "mlp.fc1"}
    for i in range(config.blocks.layers):
        block, layer = f"image.blocks.{i}", f"{trunk}.blocks.{i}"
        pairs |= {f"{block}.{ours}": f"{layer}.{theirs}" for ours, theirs in parts.items()}
        scaled = (("attention.out", "attn.proj", "ls1"), ("mlp.fc2", "mlp.fc2", "ls2"))
        for (ours, theirs, scale), kind in ((part, kind) for part in scaled for kind in ("weight", "bias")):
            gain = f"{layer}.{scale}.gamma"
            gain = gain if gain in weights.tensors else ""
            found[f"{block}.{ours}.{kind}"] = Rule((f"{layer}.{theirs}.{kind}",), gain=gain)
    return found | paired(pairs)
