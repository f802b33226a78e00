"""Hugging Face folders: config.json, model.safetensors (or shards), preprocessor and tokenizer files.

`model_type` in config.json names the family; each is one file beside this one and one line in `MODEL_TYPES`. A family's module
offers FAMILY (its name in bundles), `read_config`, `rules`, `ignorable` and `read_text`, as `load` below calls them; RENAMED where
releases of transformers named tensors in several ways; and what differs from CLIP: MODEL, PROCESSOR, TEMPLATES, DETECTION.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from edgeclip.errors import SourceError
from edgeclip.models.clip import Clip
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import fill, find_weights, read_json, read_weights, renamed
from edgeclip.models.loaders.huggingface.preprocessing import read_preprocessing
from edgeclip.models.source import Request, Source

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin",)
SHARDS = ("model-*-of-*.safetensors",)

_PROCESSOR = "CLIPImageProcessor"  # of files that name none, unless the family's module offers another
# model_type -> module
MODEL_TYPES = {
    "altclip": "edgeclip.models.loaders.huggingface.altclip",
    "chinese_clip": "edgeclip.models.loaders.huggingface.chinese_clip",
    "clip": "edgeclip.models.loaders.huggingface.clip",
    "clip_text_model": "edgeclip.models.loaders.huggingface.clip_tower",
    "clip_vision_model": "edgeclip.models.loaders.huggingface.clip_tower",
    "metaclip_2": "edgeclip.models.loaders.huggingface.metaclip_2",
    "owlv2": "edgeclip.models.loaders.huggingface.owlv2",
    "owlvit": "edgeclip.models.loaders.huggingface.owlvit",
    "siglip": "edgeclip.models.loaders.huggingface.siglip",
    "siglip_text_model": "edgeclip.models.loaders.huggingface.siglip_tower",
    "siglip_vision_model": "edgeclip.models.loaders.huggingface.siglip_tower",
    "vision-text-dual-encoder": "edgeclip.models.loaders.huggingface.vision_text_dual_encoder",
}
# model_type -> why not, where there is more to say than that it is unknown
REFUSED: dict[str, str] = {
    "siglip2": "This one takes pictures of free size (NaFlex): take a SigLIP 2 of one resolution, e.g. "
    "hf:google/siglip2-base-patch16-224.",
}


def matches(folder: Path) -> bool:
    """Whether the folder holds a Hugging Face model of any type (`load` says which types it can read)."""
    config = folder / "config.json"
    return config.is_file() and "model_type" in read_json(config)


def load(folder: Path, name: str, request: Request) -> Source:
    """Load a Hugging Face folder.

    Raises:
        SourceError: another model type, a missing or damaged file, or config and weights that contradict each other.
    """
    path = folder / "config.json"
    data = read_json(path)
    family = _family(data.get("model_type"), path)
    config: Any = family.read_config(data, path)
    weights = read_weights(find_weights(folder, WEIGHTS, PICKLES), allow_pickle=request.allow_pickle)
    weights = renamed(weights, getattr(family, "RENAMED", {}))
    kind = getattr(family, "MODEL", Clip)
    if kind is not Clip or config.image is None or config.text is None:
        # the scale belongs to a pair of towers: the cosines of others stand as they are
        weights.tensors.setdefault("logit_scale", torch.zeros(()))
    model = fill(lambda: kind(config), weights, family.rules(config), family.ignorable)
    common.check_scale(model, weights.where)
    tokenizer_json, text = b"", None
    if config.text is not None:
        tokenizer_json, text = family.read_text(folder, config.text, request)
    return common.make_source(
        request,
        name,
        family.FAMILY,
        model,
        preprocessing=None
        if config.image_size is None
        else read_preprocessing(folder, config.image_size, getattr(family, "PROCESSOR", _PROCESSOR)),
        text=text,
        tokenizer_json=tokenizer_json,
        licence=common.read_licence(folder),
        digest=weights.digest,
        templates=getattr(family, "TEMPLATES", common.PHOTO_TEMPLATES),
        detection=getattr(family, "DETECTION", None),
    )


def _family(model_type: object, path: Path) -> ModuleType:
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        more = f" {REFUSED[str(model_type)]}" if str(model_type) in REFUSED else ""
        raise SourceError(
            f"{path}: model_type is {model_type!r}; of Hugging Face models edgeclip reads {', '.join(MODEL_TYPES)}.{more}"
        )
    return importlib.import_module(MODEL_TYPES[model_type])
