"""CoCa's two contrastive towers, as open_clip writes them."""

from __future__ import annotations

from tests.families.openclip_models import write

TINY = {"width": 64, "head_width": 16, "patch_size": 16, "image_size": 32, "attn_pooler_heads": 4}

MODELS = {
    name: write(name, tag="laion2b_s13b_b90k", tiny={**TINY, "attn_pooler_queries": 5})
    for name in ("coca_ViT-B-32", "coca_ViT-L-14")
}
