"""edgeclip's own checkpoint folder: config.json, model.safetensors, tokenizer.json. `save_source` writes it.

What a model keeps apart (DualEncoder.apart), learned on towers that stay as they are, lies in apart.safetensors: the digest is of the
towers' file, so what was embedded before stays comparable.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from safetensors.torch import save

from edgeclip.bundle.manifest import Detection, Licence, Preprocessing, TextSettings
from edgeclip.errors import SourceError
from edgeclip.files import new_folder, write_file
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import fill, find_weights, read_json, read_weights
from edgeclip.models.loaders.tokenizer import read_tokenizer
from edgeclip.models.source import DualEncoder, Request, Source

FORMAT = "edgeclip.source"
FORMAT_VERSION = 1
WEIGHTS = ("model.safetensors",)
APART = "apart.safetensors"
PICKLES: tuple[str, ...] = ()
SHARDS: tuple[str, ...] = ()

# family -> module, model class, config class; a model offers `.config` with to_json and from_json, pooling, and what `_check_sizes` asks
FAMILIES = {
    "clip": ("edgeclip.models.clip", "Clip", "ClipConfig"),
    "nano": ("edgeclip.models.nano", "NanoCLIP", "NanoConfig"),
    "detector": ("edgeclip.models.detector", "DetectorModel", "DetectorModelConfig"),
    "regions": ("edgeclip.models.regions", "RegionEncoder", "RegionConfig"),
    "prompted": ("edgeclip.models.prompter", "PromptedClip", "PromptedConfig"),
    "quantised": ("edgeclip.models.quantised", "QuantisedClip", "QuantisedConfig"),
}
_LAYERS = ("layers", "text_layers", "depths")
T = TypeVar("T")


def matches(folder: Path) -> bool:
    """Whether the folder is one of ours."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("format") == FORMAT


def save_source(
    folder: Path,
    *,
    model: DualEncoder,
    preprocessing: Preprocessing | None,
    text: TextSettings | None,
    tokenizer_json: bytes,
    licence: Licence,
    templates: tuple[str, ...] = ("{}",),
    detection: Detection | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint folder that `load_source` opens, whole or not at all.

    Args:
        model: one of FAMILIES; its weights are saved in fp32 from whatever device they are on.
        overwrite: replace a folder that is there.
    Raises:
        InputError: the folder exists and `overwrite` is false.
        SourceError: the model is of no family that can be loaded again.
    """
    family, pooling = family_of(model)
    config: Any = model.config
    parts = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "family": family,
        "pooling": pooling,
        "config": config.to_json(),
        "preprocessing": preprocessing and asdict(preprocessing),
        "text": text and asdict(text),
        "licence": asdict(licence),
        "templates": list(templates),
        "detection": detection and asdict(detection),
    }
    state = {
        key: (value.detach().float().cpu() if value.is_floating_point() else value.cpu()).contiguous()
        for key, value in model.state_dict().items()
    }
    apart = {key: state.pop(key) for key in list(state) if key.startswith(model.apart)}
    with new_folder(folder, overwrite=overwrite) as scratch:
        write_file(scratch / WEIGHTS[0], save(state))
        if apart:
            write_file(scratch / APART, save(apart))
        if text is not None:
            write_file(scratch / "tokenizer.json", tokenizer_json)
        write_file(scratch / "config.json", json.dumps(parts, indent=1) + "\n")


def family_of(model: DualEncoder) -> tuple[str, str]:
    """-> (family, pooling) of a model of ours. Raises SourceError for another class."""
    for family, (_, name, _) in FAMILIES.items():
        if type(model).__name__ == name:
            config: Any = model.config
            return family, config.pooling
    raise SourceError(
        f"{type(model).__name__}: no family of edgeclip checkpoints, expected one of {', '.join(FAMILIES)}."
    )


def load(folder: Path, name: str, request: Request) -> Source:
    """Load a folder that `save_source` wrote.

    Raises:
        SourceError: a newer format, an unknown family, a damaged file, or config and weights that contradict each other.
    """
    path = folder / "config.json"
    data = read_json(path)
    if data.get("version") != FORMAT_VERSION:
        raise SourceError(
            f"{path}: format version {data.get('version')!r}, this edgeclip reads {FORMAT_VERSION}."
        )
    family = data.get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise SourceError(f"{path}: family {family!r}, expected one of {', '.join(FAMILIES)}.")
    module_name, model_name, config_name = FAMILIES[family]
    module = importlib.import_module(module_name)
    try:
        config = getattr(module, config_name).from_json(data["config"])
        preprocessing = data["preprocessing"] and _part(Preprocessing, data["preprocessing"])
        text = data["text"] and _part(TextSettings, data["text"])
        licence = _part(Licence, data["licence"])
        detection = _detection(data.get("detection"))
        templates, pooling = tuple(map(str, data["templates"])), str(data["pooling"])
        for part in (config, preprocessing, text, licence, detection):
            if part is not None:
                _check_types(part)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SourceError(
            f"{path}: does not describe a model of family {family!r} ({error}). It was edited or damaged."
        ) from error
    _check_sizes(path, config, preprocessing, text)
    _check_detection(path, config, detection)
    weights = read_weights(find_weights(folder, WEIGHTS, PICKLES), allow_pickle=request.allow_pickle)
    if (folder / APART).is_file():
        weights = replace(weights, tensors=weights.tensors | read_weights(folder / APART).tensors)
    model: DualEncoder = fill(lambda: getattr(module, model_name)(config), weights, {}, lambda key: False)
    common.check_scale(model, weights.where)
    return Source(
        spec=request.spec,
        name=name,
        family=family,
        model=model,
        embedding_dim=config.embed_dim,
        activation=model.activation,
        preprocessing=preprocessing,
        text=text,
        tokenizer_json=read_tokenizer(request.tokenizer or folder / "tokenizer.json") if text else b"",
        pooling=pooling,
        licence=licence,
        digest=weights.digest,
        templates=templates,
        detection=detection,
    )


def _check_types(part: Any) -> None:
    """Raise TypeError where a field of a dataclass, or of one inside it, does not hold what its annotation says."""
    hints = get_type_hints(type(part))
    for name in (entry.name for entry in fields(part)):
        value, hint = getattr(part, name), hints[name]
        if is_dataclass(value):
            _check_types(value)
        elif not _fits(value, hint, common.MOST_LAYERS if name in _LAYERS else common.MOST):
            raise TypeError(f"{name} is {value!r}")


def _fits(value: Any, hint: Any, most: int) -> bool:
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in options
    if origin in (Union, UnionType):
        return any(_fits(value, option, most) for option in options)
    if origin is tuple:
        kinds = options[:1] * len(value) if options[-1] is Ellipsis and isinstance(value, tuple) else options
        return (
            isinstance(value, tuple)
            and len(value) == len(kinds)
            and all(_fits(item, kind, most) for item, kind in zip(value, kinds, strict=True))
        )
    if hint is float:
        return type(value) in (int, float) and abs(value) <= most
    return type(value) is (origin or hint) and (hint is not int or 0 <= value <= most)


def _check_sizes(
    path: Path, config: Any, preprocessing: Preprocessing | None, text: TextSettings | None
) -> None:
    """Raise SourceError where pictures or texts would be prepared for other towers than the config describes."""
    size, words = config.image_size, getattr(config, "text", config)  # nano's config is of all its parts
    size = (size, size) if isinstance(size, int) else size
    length, rows = (words.context_length, words.vocab_size) if words else (0, 0)
    stated_size = preprocessing and preprocessing.size
    if stated_size != size:
        raise SourceError(f"{path}: preprocessing.size is {stated_size}, but the image tower takes {size}.")
    if text is None:
        if rows:
            raise SourceError(f"{path}: has a text tower, but no settings of its texts.")
        return
    for name, stated, most in (
        ("vocab_size", text.vocab_size, rows),
        ("context_length", text.context_length, length),
    ):
        if type(stated) is not int or not 0 <= stated <= most:
            raise SourceError(f"{path}: text.{name} is {stated!r}, but the text tower takes at most {most}.")


def _check_detection(path: Path, config: Any, detection: Detection | None) -> None:
    """Raise SourceError where a detector's pictures would be prepared for another, or where there is none."""
    detector = getattr(config, "detector", None)
    if detection is not None and detector is None:
        raise SourceError(f"{path}: says how to detect, but its model has no detector.")
    own = None if detection is None else detection.preprocessing
    if own is None or detector is None:
        return
    size = detector.image_size
    size = (size, size) if isinstance(size, int) else size
    if own.size != size:
        raise SourceError(
            f"{path}: detection.preprocessing.size is {own.size}, but the detector takes {size}."
        )


def _part(kind: type[T], values: dict[str, Any]) -> T:
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _detection(values: dict[str, Any] | None) -> Detection | None:
    if values is None:  # also of folders that were written before there were detectors
        return None
    own = values["preprocessing"]
    return _part(Detection, {**values, "preprocessing": own and _part(Preprocessing, own)})
