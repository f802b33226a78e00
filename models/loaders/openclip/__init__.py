"""OpenCLIP checkpoints: a Hub-style folder (open_clip_config.json and weights) or one file of an architecture.

Facts of the format follow open_clip (config keys and defaults, names of tensors, poolings, preprocessing). A kind of tower is one
file beside this one and one line in `IMAGE_TOWERS` or `TEXT_TOWERS`. Its module offers `matches(section)`, `KEYS` (every key that
its section may hold, with open_clip's default), `read(section, shared) -> config` and `rules(config, weights)`.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeclip.errors import SourceError
from edgeclip.models.clip import Clip
from edgeclip.models.config import ClipConfig
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import Rule, Weights, fill, find_weights, read_json, read_weights
from edgeclip.models.loaders.openclip.config import Shared, read_preprocessing, section, top_level
from edgeclip.models.loaders.openclip.table import ARCHS, QUICK, model_config
from edgeclip.models.loaders.openclip.texts import read_text
from edgeclip.models.source import Request, Source

log = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
PICKLES = ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth")
SHARDS: tuple[str, ...] = ()
OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")  # scalars that OpenAI's own files carry

_HERE = "edgeclip.models.loaders.openclip"
# Tried in this order.
IMAGE_TOWERS = (f"{_HERE}.vit",)
TEXT_TOWERS = (f"{_HERE}.transformer",)


def matches(folder: Path) -> bool:
    """Whether the folder is one of OpenCLIP's."""
    return (folder / CONFIG).is_file()


def load(folder: Path, name: str, request: Request) -> Source:
    """Load a folder as OpenCLIP's Hub repositories are laid out.

    Raises:
        SourceError: an unknown kind of tower, a missing or damaged file, or a contradiction.
    """
    path = folder / CONFIG
    data = read_json(path)
    model_cfg = data.get("model_cfg", data)
    weights = read_weights(find_weights(folder, WEIGHTS, PICKLES), allow_pickle=request.allow_pickle)
    return _source(folder, name, request, model_cfg, data.get("preprocess_cfg", {}), weights, str(path))


def load_file(path: Path, arch: str, request: Request) -> Source:
    """Load one weight file of a named architecture; pictures are prepared as open_clip does by default.

    Raises:
        SourceError: an unknown architecture, a damaged file, or weights of another shape or activation.
    """
    model_cfg = known_arch(arch, request.spec)
    weights = read_weights(path, allow_pickle=request.allow_pickle)
    if set(OPENAI_ONLY) & set(weights.tensors) and not model_cfg["quick_gelu"]:
        raise SourceError(
            f"{path}: OpenAI's own weights, trained with QuickGELU: name the architecture {arch}{QUICK}."
        )
    log.warning(
        "%s: no preprocessing beside the weights; taking open_clip's default (OpenAI's mean and std)", path
    )
    return _source(path.parent, path.stem, request, model_cfg, {}, weights, str(path))


def _source(
    folder: Path,
    name: str,
    request: Request,
    model_cfg: Any,
    preprocess_cfg: Any,
    weights: Weights,
    where: str,
) -> Source:
    state = _text_prefixed(weights)
    config, (image, text) = _read(model_cfg, where, logit_bias="logit_bias" in state.tensors)
    assert config.image is not None
    assert config.text is not None
    rules = {
        "logit_scale": Rule(("logit_scale",)),
        "logit_bias": Rule(("logit_bias",)),
        **image.rules(config.image, state),
        **text.rules(config.text, state),
    }
    model = fill(
        lambda: Clip(config), state, rules, lambda key: key in OPENAI_ONLY or key.endswith("attn_mask")
    )
    common.check_scale(model, weights.where)
    tokenizer_json, settings = read_text(folder, model_cfg["text_cfg"], config.text, request, where)
    return common.make_source(
        request,
        name,
        "openclip",
        model,
        preprocessing=read_preprocessing(preprocess_cfg, config.image.image_size, where),
        text=settings,
        tokenizer_json=tokenizer_json,
        licence=common.read_licence(folder),
        digest=weights.digest,
    )


def read_config(model_cfg: Any, where: str, *, logit_bias: bool) -> ClipConfig:
    """A `model_cfg` as ours. Raises SourceError on a key or value that describes a tower which no module here knows."""
    return _read(model_cfg, where, logit_bias=logit_bias)[0]


def _read(own: Any, where: str, *, logit_bias: bool) -> tuple[ClipConfig, tuple[ModuleType, ModuleType]]:
    top = top_level(own, where)
    image, text = _tower(IMAGE_TOWERS, top["vision_cfg"]), _tower(TEXT_TOWERS, top["text_cfg"])
    configs = []
    for module, name in ((image, "vision_cfg"), (text, "text_cfg")):
        shared = Shared(top["embed_dim"], top["quick_gelu"], f"{where}: {name}")
        configs.append(module.read(section(top[name], module.KEYS, shared.where), shared))
    return ClipConfig(top["embed_dim"], configs[0], configs[1], logit_bias), (image, text)


def _tower(names: tuple[str, ...], own: dict[str, Any]) -> ModuleType:
    modules = [importlib.import_module(name) for name in names]
    return next(module for module in modules if module.matches(own))


def _text_prefixed(weights: Weights) -> Weights:
    """Both layouts of the text tower's names in one: `text.` before each, as newer checkpoints have it."""
    outer = ("visual.", "text.", "logit_", *OPENAI_ONLY)
    tensors = {
        key if key.startswith(outer) else f"text.{key}": value for key, value in weights.tensors.items()
    }
    return Weights(weights.where, tensors, weights.digest)


def known_arch(arch: str, where: str) -> dict[str, Any]:
    """The `model_cfg` of an architecture. Raises SourceError for an unknown name."""
    found = model_config(arch)
    if found is None:
        raise SourceError(
            f"{where}: unknown architecture {arch!r}, expected one of {', '.join(ARCHS)} (also with {QUICK})."
        )
    return found


def check_arch(source: Source, arch: str, wanted: dict[str, Any]) -> None:
    """Hold a loaded folder against the architecture that the spec named; its own config has the last word on activation.

    Raises:
        SourceError: the folder holds a model of other sizes.
    """
    config: ClipConfig = source.model.config  # type: ignore[assignment]
    named = read_config(wanted, source.spec, logit_bias=config.logit_bias)
    for mine, its, tower in ((named.image, config.image, "image"), (named.text, config.text, "text")):
        asked, found = _sizes(mine), _sizes(its)
        activations = asked.pop("activation", None), found.pop("activation", None)
        if activations[0] != activations[1]:
            log.warning(
                "%s: %s means %s, the checkpoint's own config says %s: taking that",
                source.spec,
                arch,
                *activations,
            )
        if asked != found:
            raise SourceError(
                f"{source.spec}: the checkpoint's {tower} tower has {found}, {arch} has {asked}."
            )


def _sizes(part: Any) -> dict[str, object]:
    """Every number that makes a tower another one: plain fields, those of its blocks included."""
    names = (
        "width",
        "layers",
        "heads",
        "image_size",
        "patch_size",
        "context_length",
        "vocab_size",
        "activation",
        "model",
    )
    owners = (part, getattr(part, "blocks", part))
    return {
        field.name: getattr(owner, field.name)
        for owner in owners
        for field in fields(owner)
        if field.name in names
    }
