"""`Owlv2ForObjectDetection` of transformers: OWL-ViT with an objectness for each region, for pictures padded to a square.

The objectness ranks regions where no label is at hand; scores leave it out, in transformers and in the authors' code alike.
Source: Minderer et al. 2023, arXiv:2306.09683. Large models have patches of 14 and pictures of 1008, which the config says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.models.detector import DetectorModelConfig
from edgeclip.models.loaders.huggingface import owlvit

FAMILY = "owlv2"
MODEL, RENAMED, TEMPLATES, DETECTION = owlvit.MODEL, owlvit.RENAMED, owlvit.TEMPLATES, owlvit.DETECTION
rules, ignorable, read_text = owlvit.rules, owlvit.ignorable, owlvit.read_text
PROCESSOR = "Owlv2ImageProcessor"
_IMAGE = {"image_size": 768, "patch_size": 16}


def read_config(data: dict[str, Any], path: Path) -> DetectorModelConfig:
    """An `Owlv2ForObjectDetection`'s config.json as ours. Raises SourceError on an impossible value."""
    return owlvit.detector_config(data, path, _IMAGE, objectness=True)
