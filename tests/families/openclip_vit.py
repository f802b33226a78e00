"""OpenCLIP's own ViTs: its byte-pair tokenizer, LayerScale, QuickGELU, and MetaCLIP 2's tokenizer (with a smaller vocabulary)."""

from __future__ import annotations

from tests.families.openclip_models import write
from tests.vocabularies import write_t5_tokenizer, write_xlm_roberta_tokenizer

TINY = {"width": 64, "head_width": 16, "image_size": 32, "patch_size": 16}
# MetaCLIP 2 by architecture: its tokenizer
WORLDWIDE = {
    "ViT-H-14-worldwide-quickgelu": write_xlm_roberta_tokenizer,
    "ViT-L-14-worldwide": write_t5_tokenizer,
}

MODELS = {
    "ViT-B-16-quickgelu": write("ViT-B-16-quickgelu", tag="metaclip_400m", tiny=TINY),
    "ViT-M-16-alt": write("ViT-M-16-alt", tiny=TINY),
    **{name: write(name, tiny=TINY, tokenizer=tokenizer) for name, tokenizer in WORLDWIDE.items()},
}
ROWS = {name: "MetaCLIP 2" if name in WORLDWIDE else "CLIP" for name in MODELS}
