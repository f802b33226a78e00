"""What every checkpoint format says in the same way: licence, tokenizer settings, checks across config and tokenizer."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgeclip.bundle.manifest import Detection, Licence, Preprocessing, TextSettings
from edgeclip.errors import SourceError
from edgeclip.models.config import TextTowerConfig
from edgeclip.models.source import DualEncoder, Request, Source

log = logging.getLogger(__name__)

PHOTO_TEMPLATES = ("a photo of a {}.",)  # of models trained on photographs
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
# of any number and of the layers in a config: more is damage, and would take all memory
MOST, MOST_LAYERS = 1 << 24, 1024
_LAYERS = ("layers", "num_hidden_layers")
_LISTS = ("image_size", "patch_size", "eos_token_id")  # settings that may hold a list instead of a number
# licence ids of model cards that do not allow every use; anything else unknown is passed on as it stands
_NOT_EVERY_USE = ("-nc", "noncommercial", "research", "amlr", "apple-", "fair-", "openrail")


def overlay(defaults: dict[str, Any], own: dict[str, Any], where: str) -> dict[str, Any]:
    """A config section over its defaults, each value of its default's kind; null stands for the default.

    Keys without a default are passed on as they are; sizes may be lists; a default of None takes anything.

    Raises:
        SourceError: a value of another kind, a negative number, 0 where the default is not, or a number beyond any model.
    """
    for key, value in own.items():
        default = defaults.get(key)
        if default is None or value is None or (isinstance(value, list) and key in _LISTS):
            continue
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        number = type(value) in (int, float)  # a bool is none
        most = MOST_LAYERS if key in _LAYERS else MOST
        if type(value) not in kinds or (number and not min(default, 1) <= value <= most):
            raise SourceError(f"{where}.{key}: expected {kinds[-1].__name__}, got {value!r}.")
    return {**defaults, **{key: value for key, value in own.items() if value is not None}}


def check_heads(width: int, heads: int, where: str) -> None:
    """Raises SourceError if the heads do not divide the width."""
    if heads < 1 or width % heads:
        raise SourceError(f"{where}: {heads} heads do not divide a width of {width}.")


def pair(value: Any, where: str) -> tuple[int, int]:
    """(H, W) from a number or a list of two. Raises SourceError on anything else."""
    sides = value if isinstance(value, list | tuple) else [value, value]
    if len(sides) == 2 and all(type(side) is int and 0 < side <= MOST for side in sides):
        return sides[0], sides[1]
    raise SourceError(f"{where}: expected a size in pixels or [height, width], got {value!r}.")


def triple(value: Any, where: str) -> tuple[float, float, float]:
    """Three numbers, RGB. Raises SourceError on anything else."""
    if isinstance(value, list | tuple) and len(value) == 3:
        numbers = [float(x) for x in value if type(x) in (int, float) and abs(x) <= MOST]
        if len(numbers) == 3:
            return numbers[0], numbers[1], numbers[2]
    raise SourceError(f"{where}: expected three numbers (RGB), got {value!r}.")


def stds(value: Any, where: str) -> tuple[float, float, float]:
    """Like `triple`; none of the three may be 0 or less, since pixels are divided by them."""
    numbers = triple(value, where)
    if min(numbers) <= 0:
        raise SourceError(f"{where}: expected three numbers above 0 (RGB), got {value!r}.")
    return numbers


def read_licence(folder: Path) -> Licence:
    """The licence that the folder's model card states in its front matter; "unknown" and a warning without one."""
    stated = _card(folder / "README.md")
    name = stated.get("license", "")
    if name == "other":  # a licence that the Hub has no id for has its own name beside
        name = stated.get("license_name") or name
    if not name:
        warning = "the source states no licence for its weights: find out before you ship them"
    elif any(mark in name.lower() for mark in _NOT_EVERY_USE) or stated["license"] == "other":
        warning = f"the weights' licence {name!r} may not allow every use: read it before you ship them"
    else:
        return Licence(weights=name)
    log.warning("%s: %s", folder, warning)
    return Licence(weights=name or "unknown", warnings=(warning,))


def _card(path: Path) -> dict[str, str]:
    """What a model card's front matter says of licences; of a list, the first entry."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    stated: dict[str, str] = {}
    last = ""
    for line in lines[1:] if lines and lines[0].strip() == "---" else ():
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if line.lstrip().startswith("- ") and last:
            stated.setdefault(last, line.lstrip()[2:].strip().strip("\"'"))
        last = key if colon and key in ("license", "license_name") and not value.strip() else ""
        if colon and key in ("license", "license_name") and value.strip():
            stated[key] = value.strip().strip("\"'")
    return stated


def text_settings(
    config: TextTowerConfig,
    tokenizer_json: bytes,
    *,
    pad_id: int,
    clean: Any,
    where: str,
    limit: int | None = None,
) -> TextSettings:
    """Settings that fit both the text tower and its tokenizer.

    Args:
        limit: the tokenizer's own largest length, where it states one.
    Raises:
        SourceError: the tokenizer makes ids that the tower has no rows for, or never makes the id that it pools.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    ids = tokenizer.encode("a").ids
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if not ids:
        raise SourceError(
            f"{where}: the tokenizer makes nothing of the text 'a'. The file is damaged: fetch it again."
        )
    if max(largest, pad_id) >= config.vocab_size:
        raise SourceError(
            f"{where}: the tokenizer's largest id is {max(largest, pad_id)}, but the text tower has "
            f"{config.vocab_size} rows. This tokenizer belongs to another model."
        )
    eos_id = ids[-1]
    if config.pool == "eos" and eos_id != config.eos_id:
        raise SourceError(
            f"{where}: the text tower pools at id {config.eos_id}, but its tokenizer ends texts with {eos_id}. "
            "Correct eos_token_id in the config, or pass the right tokenizer."
        )
    if config.pool == "argmax" and eos_id != largest:
        log.warning(
            "%s: the tower pools at the largest id, but texts end with %d of %d", where, eos_id, largest
        )
    return TextSettings(
        context_length=min(config.context_length, limit or config.context_length),
        pad_id=pad_id,
        eos_id=eos_id,
        dynamic_length=config.ignores_padding(pad_id, eos_id),
        clean=clean,
        vocab_size=config.vocab_size,
    )


def check_scale(model: DualEncoder, where: str) -> None:
    """Raises SourceError if the logit scale is not a logarithm: exp() of it would be out of any use."""
    value = float(model.logit_scale.detach())
    if value > 10:
        raise SourceError(
            f"{where}: logit_scale is {value:g}, expected its logarithm (4.6 for a scale of 100). "
            f"Store {math.log(value):.4f} if {value:g} is the scale."
        )


def make_source(
    request: Request,
    name: str,
    family: str,
    model: DualEncoder,
    *,
    preprocessing: Preprocessing | None,
    text: TextSettings | None,
    tokenizer_json: bytes,
    licence: Licence,
    digest: str,
    templates: tuple[str, ...] = PHOTO_TEMPLATES,
    detection: Detection | None = None,
) -> Source:
    """A loaded model as a Source: width, pooling and how scores are made follow from its config."""
    config: Any = model.config
    return Source(
        spec=request.spec,
        name=name,
        family=family,
        model=model,
        embedding_dim=config.embed_dim,
        activation=model.activation,
        preprocessing=preprocessing,
        text=text,
        tokenizer_json=tokenizer_json,
        pooling=config.pooling,
        licence=licence,
        digest=digest,
        templates=templates,
        detection=detection,
    )
