"""Every family that edgeclip reads: checkpoints written by the library that it comes from, and that library's own answers.

One file a family, one line in `FAMILIES`, under the name that `edgeclip sources` has for it (a module whose models belong to other rows
says so in ROWS: model -> row). A family's module offers MODELS: name -> write(folder, size) -> Written. Sizes:

- "tiny": whatever is fastest to export, through the same code: one block where tests/export/traced.py has that tower with two;
- "real": the widths, resolution and vocabulary kind of a model that people use, two blocks deep where depth can be chosen;
- "full": that model whole.

Weights are random, and roughened (tests/checkpoints.py), so that no swapped or forgotten tensor leaves the output as it was.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import tests.torchvision_shim  # noqa: F401  (before timm, open_clip and transformers)

Size = Literal["tiny", "real", "full"]


@dataclass(frozen=True)
class Detected:
    """What a library's detector says of N pictures and P texts."""

    boxes: torch.Tensor  # (N, Q, 4) xyxy, 0-1 of the input's sides
    scores: torch.Tensor  # (N, Q, P) 0-1
    embeddings: torch.Tensor  # (N, Q, D) unit rows of the regions
    objectness: torch.Tensor | None  # (N, Q) 0-1


@dataclass(frozen=True)
class Written:
    """A checkpoint on disk, and what the library that wrote it says. None: it has no such part, or another model tests it."""

    spec: str  # what load_source takes
    image: Callable[[torch.Tensor], torch.Tensor] | None = None  # (N, 3, H, W) normalised pixels -> (N, D)
    text: Callable[[torch.Tensor], torch.Tensor] | None = None  # (N, L) ids -> (N, D)
    # texts -> (N, L) ids, cut and padded to the context length
    tokenize: Callable[[Sequence[str]], NDArray[np.int64]] | None = None
    prepare: Callable[[Image.Image], NDArray[np.float32]] | None = None  # RGB picture -> (3, H, W)
    # Largest difference of unit vectors that is noise here; where it is not the default, the module says what was measured.
    tolerance: float = 1e-6
    load: dict[str, Any] | None = None  # further arguments of load_source
    detect: Callable[[torch.Tensor, torch.Tensor], Detected] | None = None  # normalised pixels and (P, L) ids


Write = Callable[[Path, Size], Written]

FAMILIES: dict[str, str] = {
    "CLIP": "tests.families.clip",
    "CLIP-MoE": "tests.families.clip_moe",
    "MetaCLIP 2": "tests.families.metaclip_2",
    "SigLIP": "tests.families.siglip",
    "CLIP ResNet": "tests.families.resnet",
    "CoCa": "tests.families.coca",
    "Multilingual OpenCLIP": "tests.families.openclip_hf_text",
    "Chinese-CLIP": "tests.families.chinese_clip",
    "AltCLIP": "tests.families.altclip",
    "Vision-text dual encoder": "tests.families.vision_text",
    "CLIPA": "tests.families.clipa",
    "OpenCLIP ViTs": "tests.families.openclip_vit",
    "TinyCLIP": "tests.families.tinyclip",
    "OWL-ViT": "tests.families.owlvit",
    "OWLv2": "tests.families.owlv2",
    "Single towers": "tests.families.single_towers",
    "OpenCLIP SigLIP": "tests.families.openclip_siglip",
    "MobileCLIP and MobileCLIP 2": "tests.families.mobileclip",
    "OpenCLIP with timm towers": "tests.families.openclip_timm",
}


def models() -> dict[str, Write]:
    """Every model of every family, by its name."""
    found: dict[str, Write] = {}
    for module in FAMILIES.values():
        found |= importlib.import_module(module).MODELS
    return found


# Through the whole chain in every test run: a model for each kind of tower that no test of one pass exports (test_towers.py has every pool and
# ResNets, test_timm.py the other trunks). The others go through it in `make parity`.
CHAIN = {
    "clip-B/32", "siglip-B/16", "mt5-base-ViT-B-32", "altclip", "CLIPTextModelWithProjection", "MobileCLIP-S1",
}  # fmt: skip
# Against its library at real width in `make parity` only: another of its kind is there in every test run.
SLOW = {
    "siglip2-SO400M/14", "siglip2-L/16-512", "ViT-SO400M-14-SigLIP-384", "ViT-gopt-16-SigLIP2-256", "RN50x16-quickgelu", "coca_ViT-L-14",
    "xlm-roberta-large-ViT-H-14", "chinese-clip-large-patch14-336", "metaclip2-H/14-quickgelu", "ViT-L-14-worldwide",
    "ViT-H-14-worldwide-quickgelu", "TinyCLIP-61M/32", "MobileCLIP2-L-14", "convnext_large_d",
    "clip-L/14", "siglip-SO400M/14-384", "ViT-M-16-alt", "clip-italian", "ViT-B-16-quickgelu",
    "ViT-B-32-SigLIP2-256", "SiglipVisionModel", "bert-ViT-B-32", "MobileCLIP2-S3", "ViTamin-S", "PE-Core-T-16-384", "MobileCLIP-B",
    "CLIPTextModel", "swin_base_patch4_window7_224", "siglip-B/16-256-multilingual", "SiglipTextModel", "xlm-roberta-base-ViT-B-32",
    "TinyCLIP-8M/16", "CLIPVisionModel", "vit_relpos_medium_patch16_cls_224",
    "clip-moe-B/16", "clip-moe-L/14",
    "owlvit-base-patch32", "owlvit-base-patch16", "owlvit-large-patch14", "owlv2-base-patch16", "owlv2-large-patch14",
}  # fmt: skip


def tiered(in_every_run: Callable[[str], bool]) -> list[Any]:
    """Every model, as parameters of a test; those that are not in every run are for `make parity`."""
    return [name if in_every_run(name) else pytest.param(name, marks=pytest.mark.parity) for name in models()]


def rows() -> dict[str, str]:
    """Model -> the family, as `edgeclip sources` names it."""
    return {
        name: getattr(importlib.import_module(module), "ROWS", {}).get(name, family)
        for family, module in FAMILIES.items()
        for name in importlib.import_module(module).MODELS
    }
