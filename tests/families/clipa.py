"""CLIPA, as open_clip writes it: mean of the patches, no causal mask, word pieces, the last position."""

from __future__ import annotations

from pathlib import Path

from tests.families.openclip_models import write
from tests.vocabularies import write_bert_tokenizer


def _tokenizer(folder: Path) -> int:
    """CLIPA's text towers have 32,000 rows for the 30,522 pieces of its tokenizer."""
    return int(write_bert_tokenizer(folder) * 32000 / 30522)


MODELS = {
    "ViT-L-14-CLIPA": write(
        "ViT-L-14-CLIPA",
        tag="datacomp1b",
        tiny={"width": 64, "head_width": 16, "image_size": 28},
        tokenizer=_tokenizer,
    )
}
