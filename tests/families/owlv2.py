"""`Owlv2ForObjectDetection` of transformers. See owlvit.py."""

from __future__ import annotations

from tests.families.owlvit import SIZES, _write

MODELS = {name: _write(name) for name in SIZES if name.startswith("owlv2")}
