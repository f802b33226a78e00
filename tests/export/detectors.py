"""A small detector whose regions differ: random weights alone give every region the same box, score and embedding."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeclip.bundle import Bundle, Detection
from edgeclip.export.api import ExportSettings, export_bundle
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.models.config import ImageConfig
from edgeclip.models.detector import Detector, DetectorConfig, DetectorModel, DetectorModelConfig
from edgeclip.models.source import Source
from tests.checkpoints import roughen
from tests.export.sources import BLOCKS, PREPROCESSING, TEXT, WORDS, made_source

SIDE, DIM = 64, 24
DETECTOR_PREPROCESSING = replace(PREPROCESSING, size=(SIDE, SIDE), mode="squash")
IMAGE = ImageConfig(
    replace(BLOCKS, activation="quick_gelu"), (SIDE, SIDE), 16, norm_after_pool=False, projection=False
)


def detector_source(
    objectness: bool = True, layers: int = 1, image: ImageConfig = IMAGE, **changes: Any
) -> Source:
    """An OWL of 4 x 4 regions; `changes` replace fields of the Source."""
    torch.manual_seed(4)
    image = replace(image, blocks=replace(image.blocks, layers=layers))
    words = replace(WORDS, blocks=replace(WORDS.blocks, layers=layers))
    model = DetectorModel(DetectorModelConfig(DetectorConfig(image, DIM, objectness), words)).eval()
    roughen(model)
    spec = replace(DETECTOR_PREPROCESSING, size=image.image_size)
    liven(model.detector, torch.from_numpy(pixels_of(made_up_pictures(4), spec)))
    with torch.no_grad():  # as in sources.py
        model.text.embedding.weight.mul_(0.5)
        model.text.position.mul_(20)
    made = made_source(model, DIM, TEXT)
    detection = Detection(threshold=0.3, nms_iou=0.5, objectness=objectness)
    changes = {"preprocessing": spec, "activation": "sigmoid", "detection": detection, **changes}
    return replace(made, **changes)


@torch.no_grad()
def liven(detector: Detector, pixels: torch.Tensor) -> None:
    """Scale and shift each head's last layer so that over these pictures its outputs have a spread, as trained ones have."""
    x = detector.features(pixels)
    heads: list[tuple[nn.Linear, float, float, Any]] = [
        (detector.box_head.fc3, 0.0, 0.8, detector.box_head(x)),
        (detector.embedding, 0.0, 1.0, detector.embedding(x)),
        (detector.scale, 3.0, 2.0, detector.scale(x)),  # some below 0, where elu bends
        (detector.shift, -0.5, 0.3, detector.shift(x)),
    ]
    if detector.objectness_head is not None:
        heads.append((detector.objectness_head.fc3, 0.5, 1.5, detector.objectness_head(x)))
    for linear, centre, spread, found in heads:
        flat = found.flatten(0, -2)
        gain = spread / flat.std(dim=0)
        linear.weight.mul_(gain[:, None])
        linear.bias.copy_((linear.bias - flat.mean(dim=0)) * gain + centre)


@cache
def exported(folder: Path) -> Bundle:
    """The small detector without its text tower, in every flavour, also taking bytes: traced once a process. Not to be written into."""
    source = replace(detector_source(), text=None, tokenizer_json=b"")
    source.model.text = None
    settings = ExportSettings(uint8=True, threads=1)
    return export_bundle(source, folder / "detector", settings=settings).bundle
