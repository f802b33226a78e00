"""OpenCLIP checkpoints: a Hub-style folder (open_clip_config.json and weights) or one file of an architecture.

Facts of the format follow open_clip (config keys and defaults, names of tensors, poolings, preprocessing). A kind of tower is one
file beside this one and one line in `IMAGE_TOWERS` or `TEXT_TOWERS`. Its module offers `matches(section)`, `KEYS` (every key that
its section may hold, with open_clip's default), `read(section, shared) -> config` and `rules(config, weights)`.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Collection
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
from edgeclip.models.loaders.openclip.table import (
    ARCHS,
    QUICK,
    Tag,
    find_tag,
    model_config,
    shared_preprocessing,
)
from edgeclip.models.loaders.openclip.texts import read_text
from edgeclip.models.source import Request, Source

log = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
PICKLES = ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth")
SHARDS: tuple[str, ...] = ()
OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")  # scalars that OpenAI's own files carry
NO_WEIGHTS = (
    "attn_mask",
    "num_batches_tracked",
    "position_ids",
)  # endings of names that may stand in a checkpoint

_HERE = "edgeclip.models.loaders.openclip"
# Tried in this order.
IMAGE_TOWERS = (f"{_HERE}.timm", f"{_HERE}.resnet", f"{_HERE}.vit")
TEXT_TOWERS = (f"{_HERE}.hf_text", f"{_HERE}.transformer")


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


def load_file(path: Path, arch: str, request: Request, tag: Tag | None = None, name: str = "") -> Source:
    """Load one weight file of a named architecture.

    Args:
        tag: what the file is known to be. Without one, pictures are prepared as all of the architecture's tags do it, else as
            open_clip does by default; a warning says which.
        name: of the source; "" = the file's.
    Raises:
        SourceError: an unknown architecture, a damaged file, or weights of another shape or activation.
    """
    model_cfg = known_arch(arch, request.spec, tag)
    weights = read_weights(path, allow_pickle=request.allow_pickle)
    if set(OPENAI_ONLY) & set(weights.tensors) and not model_cfg["quick_gelu"]:
        raise SourceError(
            f"{path}: OpenAI's own weights, trained with QuickGELU: name the architecture {arch}{QUICK}."
        )
    preprocess_cfg = tag.preprocess_cfg if tag else shared_preprocessing(arch)
    if tag is None:
        taken = "open_clip's default (OpenAI's mean and std)"
        if preprocess_cfg is not None:
            taken = f"what every tag of {arch} has: {preprocess_cfg}"
        log.warning("%s: no preprocessing beside the weights; taking %s", path, taken)
    return _source(
        path.parent, name or path.stem, request, model_cfg, preprocess_cfg or {}, weights, str(path)
    )


def _source(
    folder: Path,
    name: str,
    request: Request,
    model_cfg: Any,
    preprocess_cfg: Any,
    weights: Weights,
    where: str,
) -> Source:
    state = _text_prefixed(_without_decoder(weights, model_cfg))
    config, (image, text) = _read(model_cfg, where, state.tensors)
    assert config.image is not None
    assert config.text is not None
    rules = {
        "logit_scale": Rule(("logit_scale",)),
        "logit_bias": Rule(("logit_bias",)),
        **image.rules(config.image, state),
        **text.rules(config.text, state),
    }
    model = fill(
        lambda: Clip(config), state, rules, lambda key: key in OPENAI_ONLY or key.endswith(NO_WEIGHTS)
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
    return _read(model_cfg, where, ("logit_bias",) if logit_bias else ())[0]


def _read(own: Any, where: str, tensors: Collection[str]) -> tuple[ClipConfig, tuple[ModuleType, ModuleType]]:
    top = top_level(own, where)
    image, text = _tower(IMAGE_TOWERS, top["vision_cfg"]), _tower(TEXT_TOWERS, top["text_cfg"])
    configs = []
    for module, name in ((image, "vision_cfg"), (text, "text_cfg")):
        shared = Shared(top["embed_dim"], top["quick_gelu"], f"{where}: {name}", tensors)
        configs.append(module.read(section(top[name], module.KEYS, shared.where), shared))
    return ClipConfig(top["embed_dim"], configs[0], configs[1], "logit_bias" in tensors), (image, text)


def _tower(names: tuple[str, ...], own: dict[str, Any]) -> ModuleType:
    modules = [importlib.import_module(name) for name in names]
    return next(module for module in modules if module.matches(own))


def _without_decoder(weights: Weights, model_cfg: Any) -> Weights:
    """CoCa without what writes captions: bundles hold the two towers that embed."""
    if not (isinstance(model_cfg, dict) and model_cfg.get("multimodal_cfg")):
        return weights
    kept = {key: value for key, value in weights.tensors.items() if not key.startswith("text_decoder.")}
    log.warning(
        "%s: its captioning decoder (%d tensors) is left out: edgeclip takes the two towers that embed",
        weights.where,
        len(weights.tensors) - len(kept),
    )
    return Weights(weights.where, kept, weights.digest)


def _text_prefixed(weights: Weights) -> Weights:
    """Both layouts of the text tower's names in one: `text.` before each, as newer checkpoints have it."""
    outer = ("visual.", "text.", "logit_", *OPENAI_ONLY)
    tensors = {
        key if key.startswith(outer) else f"text.{key}": value for key, value in weights.tensors.items()
    }
    return Weights(weights.where, tensors, weights.digest)


def known_arch(arch: str, where: str, tag: Tag | None = None) -> dict[str, Any]:
    """The `model_cfg` of an architecture, with the activation that the tag was trained with.

    Raises:
        SourceError: an unknown name.
    """
    found = model_config(arch)
    if found is None:
        near = ", ".join(difflib.get_close_matches(arch, ARCHS, 4, cutoff=0))
        raise SourceError(
            f"{where}: unknown architecture {arch!r}, expected one of open_clip's (also with {QUICK}), e.g. {near}."
        )
    return found if tag is None else {**found, "quick_gelu": tag.quick_gelu}


def known_tag(arch: str, tag: str, where: str) -> Tag | None:
    """A pretrained tag of an architecture, None for anything else. A tag of QuickGELU may be named without the suffix.

    Raises:
        SourceError: the tag was trained with GELU, and the architecture says QuickGELU.
    """
    found = find_tag(arch, tag)
    if found is not None and arch.endswith(QUICK) and not found.quick_gelu:
        plain = arch.removesuffix(QUICK)
        raise SourceError(
            f"{where}: the weights of {tag} were trained with GELU, {arch} means QuickGELU. Name openclip:{plain}/{tag}."
        )
    return found


def check_arch(source: Source, arch: str, tag: Tag | None = None) -> None:
    """Hold a loaded folder against the architecture, and the tag, that the spec named.

    A checkpoint's weights do not show their activation, and the wrong one still gives plausible vectors: where two sources of
    that knowledge contradict each other nothing is guessed.

    Raises:
        SourceError: the folder holds a model of other sizes or of another activation.
    """
    config: ClipConfig = source.model.config  # type: ignore[assignment]
    named = read_config(known_arch(arch, source.spec, tag), source.spec, logit_bias=config.logit_bias)
    for mine, its, tower in ((named.image, config.image, "image"), (named.text, config.text, "text")):
        asked, found = _sizes(mine), _sizes(its)
        wanted, own = asked.pop("activation", None), found.pop("activation", None)
        if asked != found:
            raise SourceError(
                f"{source.spec}: the checkpoint's {tower} tower has {found}, {arch} has {asked}."
            )
        if wanted != own:
            meant = f"the tag was trained with {wanted}" if tag else f"{arch} means {wanted}"
            name = f"Name the architecture {'with' if own == 'quick_gelu' else 'without'} {QUICK}"
            raise SourceError(
                f"{source.spec}: {meant}, the checkpoint's own config says {own} ({tower} tower). "
                f"{'Find out which is true' if tag else name}, or correct quick_gelu in a copy of its {CONFIG}."
            )
    if tag is not None and config.image is not None:
        told = read_preprocessing(tag.preprocess_cfg, config.image.image_size, source.spec)
        if source.preprocessing != told:
            log.warning(
                "%s: the repository prepares pictures otherwise than open_clip's table says of the tag: taking %s",
                source.spec,
                source.preprocessing,
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
