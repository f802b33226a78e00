"""What OpenCLIP's names stand for: the sizes of its ViT models and the Hub repositories that hold their weights.

Facts from open_clip's model configs and its table of pretrained tags.
"""

from __future__ import annotations

from typing import Any, NamedTuple

QUICK = "-quickgelu"  # the suffix of an architecture whose weights were trained with QuickGELU


class Arch(NamedTuple):
    """Sizes of both towers."""

    embed_dim: int
    image_size: int
    patch_size: int
    width: int
    layers: int
    text_width: int
    text_layers: int = 12
    head_width: int = 64
    mlp_ratio: float = 4.0
    layer_scale: float | None = None


ARCHS = {
    "ViT-S-32": Arch(384, 224, 32, 384, 12, 384),
    "ViT-S-16": Arch(384, 224, 16, 384, 12, 384),
    "ViT-S-32-alt": Arch(256, 224, 32, 384, 12, 256, 10),
    "ViT-S-16-alt": Arch(256, 224, 16, 384, 12, 256, 10),
    "ViT-M-32": Arch(512, 224, 32, 512, 12, 512),
    "ViT-M-16": Arch(512, 224, 16, 512, 12, 512),
    "ViT-M-32-alt": Arch(384, 224, 32, 512, 12, 384),
    "ViT-M-16-alt": Arch(384, 224, 16, 512, 12, 384, layer_scale=1e-4),
    "ViT-B-32": Arch(512, 224, 32, 768, 12, 512),
    "ViT-B-32-256": Arch(512, 256, 32, 768, 12, 512),
    "ViT-B-32-plus-256": Arch(640, 256, 32, 896, 12, 640),
    "ViT-B-16": Arch(512, 224, 16, 768, 12, 512),
    "ViT-B-16-plus": Arch(640, 224, 16, 896, 12, 640),
    "ViT-B-16-plus-240": Arch(640, 240, 16, 896, 12, 640),
    "ViT-L-16": Arch(768, 224, 16, 1024, 24, 768),
    "ViT-L-16-320": Arch(768, 320, 16, 1024, 24, 768),
    "ViT-L-14": Arch(768, 224, 14, 1024, 24, 768),
    "ViT-L-14-280": Arch(768, 280, 14, 1024, 24, 768),
    "ViT-L-14-336": Arch(768, 336, 14, 1024, 24, 768),
    "ViT-H-16": Arch(1024, 224, 16, 1280, 32, 1024, 24, 80),
    "ViT-H-14": Arch(1024, 224, 14, 1280, 32, 1024, 24, 80),
    "ViT-H-14-378": Arch(1024, 378, 14, 1280, 32, 1024, 24, 80),
    "ViT-g-14": Arch(1024, 224, 14, 1408, 40, 1024, 24, 88, 4.3637),
    "ViT-bigG-14": Arch(1280, 224, 14, 1664, 48, 1280, 32, 104, 4.9231),
    "ViT-e-14": Arch(1280, 224, 14, 1792, 56, 1280, 36, 112, 8.5715),
}

# (architecture, tag) -> Hub repository; the repository's own open_clip_config.json settles activation and preprocessing
REPOSITORIES = {
    ("ViT-B-32", "openai"): "timm/vit_base_patch32_clip_224.openai",
    ("ViT-B-32", "laion400m_e32"): "timm/vit_base_patch32_clip_224.laion400m_e32",
    ("ViT-B-32", "laion2b_e16"): "timm/vit_base_patch32_clip_224.laion2b_e16",
    ("ViT-B-32", "laion2b_s34b_b79k"): "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ("ViT-B-32", "datacomp_xl_s13b_b90k"): "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
    ("ViT-B-32", "metaclip_400m"): "timm/vit_base_patch32_clip_224.metaclip_400m",
    ("ViT-B-32", "metaclip_fullcc"): "timm/vit_base_patch32_clip_224.metaclip_2pt5b",
    ("ViT-B-32-256", "datacomp_s34b_b86k"): "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",
    ("ViT-B-16", "openai"): "timm/vit_base_patch16_clip_224.openai",
    ("ViT-B-16", "laion400m_e32"): "timm/vit_base_patch16_clip_224.laion400m_e32",
    ("ViT-B-16", "laion2b_s34b_b88k"): "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    ("ViT-B-16", "datacomp_xl_s13b_b90k"): "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
    ("ViT-B-16", "datacomp_l_s1b_b8k"): "laion/CLIP-ViT-B-16-DataComp.L-s1B-b8K",
    ("ViT-B-16", "dfn2b"): "apple/DFN2B-CLIP-ViT-B-16",
    ("ViT-B-16", "metaclip_400m"): "timm/vit_base_patch16_clip_224.metaclip_400m",
    ("ViT-B-16", "metaclip_fullcc"): "timm/vit_base_patch16_clip_224.metaclip_2pt5b",
    ("ViT-B-16-plus-240", "laion400m_e31"): "timm/vit_base_patch16_plus_clip_240.laion400m_e31",
    ("ViT-L-14", "openai"): "timm/vit_large_patch14_clip_224.openai",
    ("ViT-L-14", "laion400m_e32"): "timm/vit_large_patch14_clip_224.laion400m_e32",
    ("ViT-L-14", "laion2b_s32b_b82k"): "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    ("ViT-L-14", "datacomp_xl_s13b_b90k"): "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
    ("ViT-L-14", "dfn2b"): "apple/DFN2B-CLIP-ViT-L-14",
    ("ViT-L-14", "dfn2b_s39b"): "apple/DFN2B-CLIP-ViT-L-14-39B",
    ("ViT-L-14", "metaclip_400m"): "timm/vit_large_patch14_clip_224.metaclip_400m",
    ("ViT-L-14", "metaclip_fullcc"): "timm/vit_large_patch14_clip_224.metaclip_2pt5b",
    ("ViT-L-14-336", "openai"): "timm/vit_large_patch14_clip_336.openai",
    ("ViT-H-14", "laion2b_s32b_b79k"): "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ("ViT-H-14", "dfn5b"): "apple/DFN5B-CLIP-ViT-H-14",
    ("ViT-H-14", "metaclip_fullcc"): "timm/vit_huge_patch14_clip_224.metaclip_2pt5b",
    ("ViT-H-14", "metaclip_altogether"): "timm/vit_huge_patch14_clip_224.metaclip_altogether",
    ("ViT-H-14-378", "dfn5b"): "apple/DFN5B-CLIP-ViT-H-14-378",
    ("ViT-g-14", "laion2b_s12b_b42k"): "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
    ("ViT-g-14", "laion2b_s34b_b88k"): "laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
    ("ViT-bigG-14", "laion2b_s39b_b160k"): "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    ("ViT-bigG-14", "metaclip_fullcc"): "timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b",
}


def model_config(name: str) -> dict[str, Any] | None:
    """The `model_cfg` of an architecture, as open_clip_config.json writes it; None for an unknown name."""
    arch = ARCHS.get(name.removesuffix(QUICK))
    if arch is None:
        return None
    image: dict[str, Any] = {
        "image_size": arch.image_size,
        "patch_size": arch.patch_size,
        "width": arch.width,
        "layers": arch.layers,
        "head_width": arch.head_width,
        "mlp_ratio": arch.mlp_ratio,
    }
    if arch.layer_scale is not None:
        image["ls_init_value"] = arch.layer_scale
    text = {"width": arch.text_width, "heads": arch.text_width // 64, "layers": arch.text_layers}
    return {
        "embed_dim": arch.embed_dim,
        "quick_gelu": name.endswith(QUICK),
        "vision_cfg": image,
        "text_cfg": text,
    }


def repository(arch: str, tag: str) -> str | None:
    """The Hub repository of a tag; the architecture's -quickgelu twin shares it."""
    return REPOSITORIES.get((arch.removesuffix(QUICK), tag))
