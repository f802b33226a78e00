"""OpenCLIP's own vision transformer: OpenAI, LAION, DataComp, DFN, MetaCLIP 1, CLIPA, CoCa."""

from __future__ import annotations

from typing import Any

from edgeclip.errors import SourceError
from edgeclip.models.config import ImageConfig, ImagePool
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import Rule, Weights, paired
from edgeclip.models.loaders.openclip import blocks
from edgeclip.models.loaders.openclip.config import Shared, one_of

KEYS: dict[str, Any] = {
    **blocks.KEYS,
    "width": 768,
    "head_width": 64,
    "patch_size": 16,
    "image_size": 224,
    "pool_type": "tok",
    "no_ln_pre": False,
    "attentional_pool": False,
    "attn_pooler_queries": 256,
    "attn_pooler_heads": 8,
    "final_ln_after_pool": False,
    "pos_embed_type": "learnable",
    "patch_dropout": 0.0,
    "output_tokens": False,
}


def matches(own: Any) -> bool:
    """What no other tower claims is a ViT, or is refused by its keys."""
    return True


def read(image: dict[str, Any], shared: Shared) -> ImageConfig:
    """A `vision_cfg` as ours. Raises SourceError on a setting that edgeclip does not know."""
    where = shared.where
    pool, after = _pool(image, where)
    sides = common.pair(image["patch_size"], f"{where}: patch_size")
    if sides[0] != sides[1]:
        raise SourceError(f"{where}: expected square patches, got {sides}.")
    pooler = pool.startswith("attentional")
    return ImageConfig(
        blocks=blocks.blocks(image, image["width"] // image["head_width"], shared),
        image_size=common.pair(image["image_size"], f"{where}: image_size"),
        patch_size=sides[0],
        pool=pool,
        norm_pre=not image["no_ln_pre"],
        norm_after_pool=after,
        pool_queries=image["attn_pooler_queries"] if pooler else 0,
        pool_heads=image["attn_pooler_heads"] if pooler else 0,
        pool_width=shared.embed_dim if pooler else 0,
    )


def _pool(image: dict[str, Any], where: str) -> tuple[ImagePool, bool]:
    """-> (pool, whether the norm comes after it)."""
    kind = one_of(image["pool_type"], ("tok", "avg"), f"{where}.pool_type")
    if image["attentional_pool"] is True:  # the pooler's queries are normalised before one is picked
        return ("attentional" if kind == "tok" else "attentional_avg"), True
    if image["attentional_pool"]:
        raise SourceError(f"{where}: attentional_pool {image['attentional_pool']!r}, expected true or false.")
    return ("cls" if kind == "tok" else "avg"), bool(image["final_ln_after_pool"])


def rules(config: ImageConfig, weights: Weights) -> dict[str, Rule]:
    """Where each tensor of ours comes from."""
    found = {
        "image.class_token": Rule(("visual.class_embedding",)),
        "image.patches.weight": Rule(("visual.conv1.weight",)),
        "image.position": Rule(("visual.positional_embedding",)),
        "image.projection.weight": Rule(("visual.proj",), transpose=True),
        **paired({"image.norm_pre": "visual.ln_pre", "image.norm_post": "visual.ln_post"}),
        **blocks.layer_rules("image", "visual", config.blocks.layers, weights),
    }
    if config.pool_queries:
        found |= paired(
            {
                "image.head.norm_q": "visual.attn_pool.ln_q",
                "image.head.norm_k": "visual.attn_pool.ln_k",
                "image.head.out": "visual.attn_pool.attn.out_proj",
            }
        )
        found["image.head.query"] = Rule(("visual.attn_pool.query",))
        found |= _pooler_rules(weights)
    return found


def _pooler_rules(weights: Weights) -> dict[str, Rule]:
    """The pooler's projections: one stacked matrix where both widths agree, else three. Its bias is always stacked."""
    prefix = "visual.attn_pool.attn."
    for name in ("in_proj_weight", "in_proj_bias"):
        if (stacked := weights.tensors.pop(prefix + name, None)) is not None:
            kind = name.removeprefix("in_proj_")
            for part, rows in zip("qkv", stacked.chunk(3), strict=True):
                weights.tensors[f"{prefix}{part}_proj_{kind}"] = rows
    return {
        f"image.head.{part}.{kind}": Rule((f"{prefix}{part}_proj_{kind}",))
        for part in "qkv"
        for kind in ("weight", "bias")
    }
