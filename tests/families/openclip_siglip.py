"""SigLIP and SigLIP 2 in open_clip's form: timm's vision transformer with its attention pool, open_clip's text transformer."""

from __future__ import annotations

from pathlib import Path

from tests.families.openclip_timm import SHALLOW, VIT, write
from tests.sentencepieces import gemma_tokenizer
from tests.vocabularies import write_t5_tokenizer


def _gemma(folder: Path) -> int:
    tokenizer = gemma_tokenizer()
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


TOKENIZERS = {
    "ViT-B-16-SigLIP": write_t5_tokenizer,
    "ViT-SO400M-14-SigLIP-384": write_t5_tokenizer,
    "ViT-B-32-SigLIP2-256": _gemma,
    "ViT-gopt-16-SigLIP2-256": _gemma,
}

MODELS = {
    name: write(name, tag="webli", real=SHALLOW, tiny={**VIT, "patch_size": 16}, side=32, tokenizer=tokenizer)
    for name, tokenizer in TOKENIZERS.items()
}
ROWS = {name: "SigLIP 2" if "SigLIP2" in name else "SigLIP" for name in TOKENIZERS}
