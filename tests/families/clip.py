"""`CLIPModel` of transformers, at the sizes of OpenAI's models and of TinyCLIP's."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import DEPTHS, write_hf
from tests.families import Size, Write, Written
from tests.families.transformers_models import features, prepare, tokenize


def _write(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        layers = {"tiny": (1, 1), "real": (2, 2), "full": DEPTHS[name]}[size]
        model = write_hf(folder, "tiny" if size == "tiny" else name, layers=layers)
        image, text = features(model)
        return Written(str(folder), image, text, tokenize(folder, 77), prepare(folder))

    return write


MODELS = {f"clip-{name}": _write(name) for name in ("B/32", "L/14")}
