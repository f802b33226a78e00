"""TinyCLIP: `CLIPModel` of transformers, with sizes of its own."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import write_hf
from tests.families import Size, Write, Written
from tests.families.transformers_models import features, prepare, tokenize

# name -> layers of both towers
DEPTHS = {"TinyCLIP-8M/16": (10, 3), "TinyCLIP-61M/32": (12, 9)}


def _write(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        layers = (2, 2) if size == "tiny" else DEPTHS[name] if size == "full" else (2, 1)
        model = write_hf(folder, "tiny" if size == "tiny" else name, layers=layers, activation="gelu")
        image, text = features(model)
        return Written(str(folder), image, text, tokenize(folder, 77), prepare(folder))

    return write


MODELS = {name: _write(name) for name in DEPTHS}
