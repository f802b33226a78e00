"""Texts in, `input_ids` out: the source's own cleaning, then its tokenizer. Needs no PyTorch and no transformers."""

from edgeclip.runtime.text.clean import CLEANERS, clean
from edgeclip.runtime.text.tokenize import Encoded, TextEncoder

__all__ = ["CLEANERS", "Encoded", "TextEncoder", "clean"]
